//! Waiting for a link: all that it is waited for shares one limit, and each wait says what it is
//! for.

use base::beat;
use std::thread::sleep;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(100);

/// The time that a link has left.
pub(super) struct Wait<'a> {
    link: &'a str,
    limit: Duration,
    left: Duration,
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
    pub(super) fn new(link: &'a str, limit: Duration) -> Self {
        Self { link, limit, left: limit }
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
        self.within(what, |left| {
            let start = Instant::now();
            loop {
                if let Some(found) = ask()? {
                    return Ok(Some(found));
                }
                if start.elapsed() >= left {
                    return Ok(None);
                }
                beat::alive();
                sleep(POLL);
            }
        })
    }

    /// Something that keeps its time itself; `None` if that was not enough.
    pub(super) fn within<T, E: From<TimeIsUp>>(
        &mut self,
        what: &str,
        work: impl FnOnce(Duration) -> Result<Option<T>, E>,
    ) -> Result<T, E> {
        let (start, link) = (Instant::now(), self.link);
        log::info!("link {link}: waiting for {what}, {} s at most", self.left.as_secs());
        let result = work(self.left);
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
        let before = beat::alive_count();
        let mut wait = Wait::new("eth0", Duration::from_millis(600));
        let mut asked = 0;
        let mut third = || {
            asked += 1;
            Ok::<_, TimeIsUp>((asked == 5).then_some("found"))
        };
        assert_eq!(wait.poll("its card", &mut third), Ok("found"));
        assert!(beat::alive_count() > before);
        let start = Instant::now();
        let silence = wait.poll("its carrier", || Ok::<Option<()>, TimeIsUp>(None));
        assert_eq!(silence.unwrap_err().what, "its carrier");
        assert!(start.elapsed() < Duration::from_millis(500), "the first wait has taken its part");
        let start = Instant::now();
        assert!(wait.poll("an address", || Ok::<Option<()>, TimeIsUp>(None)).is_err());
        assert!(start.elapsed() < Duration::from_millis(90), "nothing is left");
    }
}
