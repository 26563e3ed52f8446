//! Waiting for a link: all that it is waited for shares one limit, and each wait says what it is
//! for.

use std::thread::sleep;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(100);

/// The time that a link has left.
pub(super) struct Wait<'a> {
    link: &'a str,
    limit: Duration,
    left: Duration,
    heartbeat: &'a dyn Fn(),
}

/// Time is up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} did not come within {seconds} s")]
pub struct TimeIsUp {
    /// What was waited for.
    pub what: String,
    /// What the link had, for all that it is waited for.
    pub seconds: u64,
}

impl<'a> Wait<'a> {
    pub(super) fn new(link: &'a str, limit: Duration, heartbeat: &'a dyn Fn()) -> Self {
        Self { link, limit, left: limit, heartbeat }
    }

    /// Asks again and again until there is an answer.
    pub(super) fn poll<T, E: From<TimeIsUp>>(
        &mut self,
        what: &str,
        mut ask: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<T, E> {
        if let Some(found) = ask()? {
            return Ok(found);
        }
        self.within(what, |left, heartbeat| {
            let start = Instant::now();
            loop {
                if let Some(found) = ask()? {
                    return Ok(Some(found));
                }
                if start.elapsed() >= left {
                    return Ok(None);
                }
                heartbeat();
                sleep(POLL);
            }
        })
    }

    /// Something that keeps its time itself; `None` if that was not enough.
    pub(super) fn within<T, E: From<TimeIsUp>>(
        &mut self,
        what: &str,
        work: impl FnOnce(Duration, &dyn Fn()) -> Result<Option<T>, E>,
    ) -> Result<T, E> {
        let (start, link) = (Instant::now(), self.link);
        log::info!("link {link}: waiting for {what}, {} s at most", self.left.as_secs());
        let result = work(self.left, self.heartbeat);
        let took = start.elapsed();
        self.left = self.left.saturating_sub(took);
        let found = result?;
        let found = found.ok_or_else(|| TimeIsUp { what: what.to_owned(), seconds: self.limit.as_secs() })?;
        log::info!("link {link}: {what} after {:.1} s", took.as_secs_f64());
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_for_all_waits_together() {
        let beats = core::cell::Cell::new(0);
        let heartbeat = || beats.set(beats.get() + 1);
        let mut wait = Wait::new("eth0", Duration::from_millis(600), &heartbeat);
        let mut asked = 0;
        let mut third = || {
            asked += 1;
            Ok::<_, TimeIsUp>((asked == 5).then_some("found"))
        };
        assert_eq!(wait.poll("its card", &mut third), Ok("found"));
        assert!(beats.get() > 0);
        let start = Instant::now();
        let silence = wait.poll("its carrier", || Ok::<Option<()>, TimeIsUp>(None));
        assert_eq!(silence.unwrap_err().what, "its carrier");
        assert!(start.elapsed() < Duration::from_millis(500), "the first wait has taken its part");
        let start = Instant::now();
        assert!(wait.poll("an address", || Ok::<Option<()>, TimeIsUp>(None)).is_err());
        assert!(start.elapsed() < Duration::from_millis(90), "nothing is left");
    }
}
