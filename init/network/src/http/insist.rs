//! A request that is sent until it is answered for good: later and later, as long as there is
//! patience.

use core::sync::atomic::{AtomicU64, Ordering};
use std::io;
use std::time::{Duration, SystemTime};

use hyper::header::{DATE, HeaderMap, RETRY_AFTER};
use hyper::{Request, StatusCode};

use crate::retry::Retry;

use super::body::Body;
use super::client::{Answer, Client, SendError};

/// A server that asks for more than this is not waited for longer.
const LONGEST_ASKED: u64 = 600;

/// Why something is not there, after all.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    /// No answer, again and again.
    #[error("{what}: no answer in {tries} tries")]
    Unanswered {
        /// What was sent.
        what: String,
        /// How often.
        tries: u64,
        /// The last cause.
        source: SendError,
    },
    /// The host is not to be talked to.
    #[error("{what}")]
    Untrusted {
        /// What was to be sent.
        what: String,
        /// Why.
        source: SendError,
    },
    /// The host does not take it.
    #[error("{what}: the host answers {status}{code}")]
    Refused {
        /// What was sent.
        what: String,
        /// Of the answer.
        status: StatusCode,
        /// What S3 says besides.
        code: Code,
    },
    /// It answers something that makes no sense.
    #[error("{what}: {problem}")]
    Nonsense {
        /// What was sent.
        what: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A request cannot be made.
    #[error("{what}: making the request")]
    Request {
        /// What was to be sent.
        what: String,
        /// Cause.
        source: hyper::http::Error,
    },
    /// What ran in the background is gone.
    #[error("{what}: the upload came to its end early")]
    Gone {
        /// What was to be sent.
        what: String,
    },
}

/// `<Code>` of an error of S3: letters and digits. Empty if there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Code(pub(super) String);

impl core::fmt::Display for Code {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}

impl UploadError {
    /// Whether there is no room, as callers of a sink ask for.
    pub(super) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Refused { status, code, .. } if is_full(*status, code) => io::ErrorKind::StorageFull,
            Self::Refused { status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. } => {
                io::ErrorKind::PermissionDenied
            }
            Self::Unanswered { .. } => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::Other,
        }
    }
}

/// Another one of the same would not fit either.
fn is_full(status: StatusCode, code: &Code) -> bool {
    const CODES: [&str; 7] = [
        "EntityTooLarge",
        "InsufficientStorage",
        "QuotaExceeded",
        "StorageFull",
        "XMinioStorageFull",
        "XMinioAdminBucketQuotaExceeded",
        "NotEnoughSpace",
    ];
    matches!(status, StatusCode::INSUFFICIENT_STORAGE | StatusCode::PAYLOAD_TOO_LARGE)
        || CODES.contains(&code.0.as_str())
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is done.
    Done,
    /// The same may do later, after this time at least.
    Later(Option<Duration>),
    /// Another request will do, now.
    Otherwise,
    /// The same will not do.
    Refused,
}

/// What an answer means by its status.
pub(super) fn judge(answer: &Answer) -> Verdict {
    let status = answer.status;
    let code = Code(code(&answer.body));
    if status.is_success() {
        Verdict::Done
    } else if is_full(status, &code) {
        Verdict::Refused
    } else if status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
    {
        Verdict::Later(asked(&answer.headers))
    } else {
        Verdict::Refused
    }
}

/// `Retry-After`: seconds, or a time by the server's own clock.
fn asked(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(date(headers)?).unwrap_or_default(),
    };
    Some(asked.min(Duration::from_secs(LONGEST_ASKED)))
}

/// What time it is at the server.
pub(super) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}

/// `<Code>` of an error of S3, if the text has one that looks like one.
pub(super) fn code(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let code = element(&text, "Code").unwrap_or_default();
    let is_code = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_code { code.to_owned() } else { String::new() }
}

/// The text of the first element of a name without attributes: all that is wanted of S3's answers.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

/// How something is sent again.
pub(super) struct Insistence<'a> {
    pub(super) client: &'a Client,
    /// Without an answer for so long, it is given up. It begins with the first failure: what goes
    /// well may take its time.
    pub(super) patience: Duration,
    /// Counts.
    pub(super) retries: &'a AtomicU64,
}

impl Insistence<'_> {
    /// Sends what `make` makes until `judge` says that it is done.
    pub(super) async fn send(
        &self,
        what: &str,
        make: impl Fn() -> Result<Request<Body>, hyper::http::Error>,
        judge: impl Fn(&Answer) -> Verdict,
    ) -> Result<Answer, UploadError> {
        let what = || what.to_owned();
        let mut retry: Option<Retry> = None;
        let mut tries = 0_u64;
        loop {
            let request = make().map_err(|source| UploadError::Request { what: what(), source })?;
            // After a failure the others that wait in the pool are not to be believed either.
            let sent = self.client.send(request, tries > 0).await;
            tries = tries.saturating_add(1);
            self.client.is_dead.fetch_and(sent.is_err(), Ordering::Relaxed);
            let (asked, error) = match sent {
                Ok(answer) => match judge(&answer) {
                    Verdict::Done => return Ok(answer),
                    Verdict::Otherwise => continue,
                    verdict => {
                        let code = Code(code(&answer.body));
                        let error = UploadError::Refused { what: what(), status: answer.status, code };
                        let Verdict::Later(asked) = verdict else { return Err(error) };
                        (asked, error)
                    }
                },
                Err(source) if source.is_final() => {
                    return Err(UploadError::Untrusted { what: what(), source });
                }
                Err(source) => (None, UploadError::Unanswered { what: what(), tries, source }),
            };
            let patience =
                || if self.client.is_dead.load(Ordering::Relaxed) { Duration::ZERO } else { self.patience };
            let retry = retry.get_or_insert_with(|| Retry::new(patience()));
            let Some(pause) = retry.pause(asked) else {
                let is_unanswered = matches!(error, UploadError::Unanswered { .. });
                self.client.is_dead.fetch_or(is_unanswered, Ordering::Relaxed);
                return Err(error);
            };
            log::warn!("{}; again in {} ms", base::log::chain(&error), pause.as_millis());
            self.retries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Answer {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers.collect(),
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn what_may_do_later_is_told_from_what_will_not() {
        let verdict = |status| judge(&answer(status, &[], ""));
        assert_eq!((verdict(200), verdict(204)), (Verdict::Done, Verdict::Done));
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(verdict(status), Verdict::Later(None), "{status}");
        }
        for status in [301, 400, 401, 403, 404, 405, 411, 413, 507] {
            assert_eq!(verdict(status), Verdict::Refused, "{status}");
        }
        let full = answer(500, &[], "<Error><Code>XMinioStorageFull</Code></Error>");
        assert_eq!(judge(&full), Verdict::Refused);
    }

    #[test]
    fn retry_after_is_seconds_or_a_time_by_the_servers_clock() {
        let later = |headers: &[(&'static str, &str)]| judge(&answer(503, headers, ""));
        let seconds = |seconds| Verdict::Later(Some(Duration::from_secs(seconds)));
        assert_eq!(later(&[("retry-after", "7")]), seconds(7));
        assert_eq!(later(&[("retry-after", "99999999")]), seconds(LONGEST_ASKED));
        assert_eq!(later(&[("retry-after", "-1")]), Verdict::Later(None));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let at = ("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT");
        assert_eq!(later(&[("date", date), at]), seconds(30));
        assert_eq!(later(&[at]), Verdict::Later(None), "by which clock?");
        assert_eq!(later(&[("date", at.1), ("retry-after", date)]), seconds(0));
    }

    #[test]
    fn a_lack_of_room_is_told_as_such_and_a_code_is_not_believed() {
        let refused = |status, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            UploadError::Refused { what: "part 1".into(), status, code: Code(code(body.as_bytes())) }
        };
        assert_eq!(refused(507, "").kind(), io::ErrorKind::StorageFull);
        assert_eq!(refused(413, "").kind(), io::ErrorKind::StorageFull);
        let full = refused(400, "<?xml?><Error><Code>EntityTooLarge</Code>");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(full.to_string(), "part 1: the host answers 400 Bad Request (EntityTooLarge)");
        assert_eq!(refused(403, "").kind(), io::ErrorKind::PermissionDenied);
        let hostile = refused(403, "<Code>\u{1b}[2J</Code>");
        assert_eq!(hostile.to_string(), "part 1: the host answers 403 Forbidden");
        assert_eq!(code("<Code>".as_bytes()), "");
        assert_eq!(code(&[0xff, b'<']), "");
    }
}
