//! Talks to the server on the network's thread: sends, takes answers, and connects again after a
//! connection has broken.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use super::beating;
use super::error::SshError;
use super::login::Login;
use super::pool::Out;
use super::session::{SILENCE, Session, receive};
use super::shared::Shared;
use crate::pace::Pace;
use crate::retry::Retry;
use base::beat;

/// How often it is looked whether the server is silent.
const TICK: Duration = Duration::from_secs(1);
/// For a good-bye.
const GOOD_BYE: Duration = Duration::from_secs(1);

/// Serves until the target is closed, or there was no progress for `patience`.
pub(super) async fn drive(
    shared: Arc<Shared>,
    login: Login,
    session: Session,
    patience: Duration,
    mut pace: Pace,
) {
    let _end = End(&shared);
    let mut retry = Retry::new(patience);
    let mut session = Some(session);
    loop {
        let error = match session.take() {
            Some(session) => match serve(&shared, session, patience, &mut retry, &mut pace).await {
                Ok(()) => return,
                Err(error) => error,
            },
            None => match beating(again(&shared, &login)).await {
                Ok(new) => {
                    log::info!("the connection is there again");
                    session = Some(new);
                    continue;
                }
                Err(error) => error,
            },
        };
        shared.lock().disconnected();
        shared.changed();
        log::warn!("the connection to the target: {}", base::log::chain(&error));
        match retry.pause(None) {
            _ if error.is_final() => return shared.give_up(error),
            Some(pause) => beating(sleep(pause)).await,
            None => {
                let seconds = patience.as_secs();
                return shared.give_up(SshError::GaveUp { seconds, source: Box::new(error) });
            }
        }
    }
}

/// However this ends: nobody waits for it any longer.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.give_up(SshError::Closed);
    }
}

async fn serve(
    shared: &Shared,
    session: Session,
    patience: Duration,
    retry: &mut Retry,
    pace: &mut Pace,
) -> Result<(), SshError> {
    let Session { mut reader, mut writer, link, .. } = session;
    let write = async {
        loop {
            let next = shared.lock().take()?;
            match next {
                Some(Out::Packet(bytes)) => writer.write_all(&bytes).await.map_err(SshError::Lost)?,
                Some(Out::Write(header, data)) => {
                    writer.write_all(&header).await.map_err(SshError::Lost)?;
                    writer.write_all(&data).await.map_err(SshError::Lost)?;
                }
                None if shared.lock().is_done() => return Ok(()),
                None => shared.work.notified().await,
            }
        }
    };
    let before = shared.lock().progress;
    let mut counted = shared.lock().settled;
    let was_idle = shared.lock().is_idle();
    let read = async {
        loop {
            let packet = receive(&mut reader).await?;
            shared.lock().answer(packet)?;
            shared.changed();
        }
    };
    let watch = async {
        loop {
            sleep(TICK).await;
            let (silent, syncing, settled, waited_for) = {
                let pool = shared.lock();
                (pool.silent_for(), pool.is_syncing(), pool.settled, pool.is_waited_for())
            };
            let bytes = settled.saturating_sub(core::mem::replace(&mut counted, settled));
            pace.look(bytes, waited_for).map_err(SshError::Slow)?;
            // A disk that many hosts write to at once takes its time.
            let limit = if syncing { patience } else { SILENCE.min(patience) };
            if silent.is_some() {
                beat::alive(); // the wait for an answer is bounded by the check below
            }
            if silent.is_some_and(|silent| silent >= limit) {
                return Err(SshError::Silent { what: "an SFTP request", seconds: limit.as_secs() });
            }
        }
    };
    let ended = tokio::select! {
        ended = write => ended,
        ended = read => ended,
        ended = watch => ended,
    };
    if was_idle || shared.lock().progress > before {
        retry.progress();
    }
    if ended.is_ok() {
        let _ = timeout(GOOD_BYE, link.end()).await; // it is only polite
    }
    ended
}

/// Another connection, with the files open again.
async fn again(shared: &Shared, login: &Login) -> Result<Session, SshError> {
    let mut session = login.connect().await?;
    let files = shared.lock().files.len();
    for file in 0..files {
        let names = shared
            .lock()
            .files
            .get(file)
            .filter(|entry| !entry.closed)
            .map(|entry| [Some(entry.path.clone()), entry.next_path.clone()]);
        let Some(names) = names else { continue };
        let mut handle = None;
        for name in names.into_iter().flatten() {
            if handle.is_none() {
                handle = session.reopen(&name).await?;
            }
        }
        let mut pool = shared.lock();
        match (handle, pool.files.get_mut(file)) {
            (Some(handle), Some(entry)) => entry.handle = handle,
            _ => pool.gone(file),
        }
    }
    Ok(session)
}
