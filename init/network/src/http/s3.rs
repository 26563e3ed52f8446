//! An object store that speaks S3, with rights of `s3:PutObject` and `s3:AbortMultipartUpload`
//! under the host's prefix and no others.
//!
//! Signatures have the time in them. Where the machine's clock is wrong, the store's own is taken
//! from its answer, and that is told. An upload that cannot end is completed with the parts that
//! arrived. One that was killed leaves its parts there, unseen: a lifecycle rule
//! (`AbortIncompleteMultipartUpload`) removes them.

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HOST, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use jiff::Timestamp;
use rusty_s3::actions::CreateMultipartUpload;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};

use base::config::Url;
use base::facts::AccessKeys;

use super::body::Body;
use super::client::{Answer, Client};
use super::insist::{Insistence, UploadError, Verdict, code, date, judge};
use super::object::{Begun, Part, Sum};
use super::web::AGENT;

/// For how long a signature is good: longer than a request takes.
const GOOD_FOR: Duration = Duration::from_hours(1);
/// Clocks that differ by more are why a signature was refused, perhaps: stores allow 15 minutes,
/// and some less.
const SKEW: u64 = 60;
/// What the answer to a completion is called (API_CompleteMultipartUpload).
const RESULT: &[u8] = b"CompleteMultipartUploadResult";
/// To say that an upload is given up. Who does not answer has a lifecycle rule.
const ABORT: Duration = Duration::from_secs(5);
/// Header of a part's or an object's SHA-256, base64.
const CHECKSUM: &str = "x-amz-checksum-sha256";

/// The prefix of a capture in a bucket.
pub(super) struct S3 {
    client: Arc<Client>,
    patience: Duration,
    bucket: Bucket,
    credentials: Credentials,
    /// `prefix/host/capture`
    prefix: String,
    /// Seconds by which the store's clock is ahead of ours.
    ahead: AtomicI64,
    skewed: AtomicBool,
    expired: Option<String>,
}

/// Why an object store cannot be addressed.
#[derive(Debug, thiserror::Error)]
pub(super) enum S3Error {
    /// The loader recorded none.
    #[error("the keys of the object store are not known")]
    NoKeys,
    /// Its URL is none that rusty-s3 takes.
    #[error("the address of the object store makes no bucket")]
    Address,
}

impl S3 {
    /// Of `endpoint/bucket/prefix`.
    pub(super) fn new(
        client: Arc<Client>,
        patience: Duration,
        url: &Url,
        region: &str,
        keys: Option<&AccessKeys>,
        directory: &str,
    ) -> Result<Self, S3Error> {
        let keys = keys.ok_or(S3Error::NoKeys)?;
        let path = url.path.trim_start_matches('/');
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        let prefix = if prefix.is_empty() { directory.to_owned() } else { format!("{prefix}/{directory}") };
        let endpoint = format!("{}://{}", url.scheme.name(), url.authority());
        let endpoint = endpoint.parse().map_err(|_| S3Error::Address)?;
        let bucket = Bucket::new(endpoint, UrlStyle::Path, bucket.to_owned(), region.to_owned());
        let (key, secret) = (keys.access_key.as_str(), keys.secret_key.expose());
        let credentials = if keys.session_token.is_empty() {
            Credentials::new(key, secret)
        } else {
            Credentials::new_with_token(key, secret, keys.session_token.expose())
        };
        Ok(Self {
            client,
            patience,
            bucket: bucket.map_err(|_| S3Error::Address)?,
            credentials,
            prefix,
            ahead: AtomicI64::new(0),
            skewed: AtomicBool::new(false),
            expired: expired(keys, now(0)),
        })
    }

    pub(super) async fn put(
        &self,
        name: &str,
        bytes: Bytes,
        sum: &Sum,
        retries: &AtomicU64,
    ) -> Result<(), UploadError> {
        let key = self.key(name);
        let checksum = STANDARD.encode(sum);
        let sign = |time: &Timestamp| {
            let mut action = self.bucket.put_object(Some(&self.credentials), &key);
            action.headers_mut().insert(CHECKSUM, checksum.as_str());
            action.sign_with_time(GOOD_FOR, time).to_string()
        };
        let headers = [(CHECKSUM, checksum.as_str())];
        let answer = self.send(name, Method::PUT, &sign, &headers, &bytes, retries).await?;
        same_checksum(name, &answer, &checksum)
    }

    /// Begins a multipart upload.
    pub(super) async fn begin(&self, name: &str, retries: &AtomicU64) -> Result<String, UploadError> {
        let what = format!("beginning {name}");
        let key = self.key(name);
        let algorithm = ("x-amz-checksum-algorithm", "SHA256");
        let sign = |time: &Timestamp| {
            let mut action = self.bucket.create_multipart_upload(Some(&self.credentials), &key);
            action.headers_mut().insert(algorithm.0, algorithm.1);
            action.sign_with_time(GOOD_FOR, time).to_string()
        };
        let answer = self.send(&what, Method::POST, &sign, &[algorithm], &Bytes::new(), retries).await?;
        let upload = String::from_utf8(answer.body).ok();
        let upload = upload.and_then(|body| CreateMultipartUpload::parse_response(&body).ok());
        let upload = upload.map(|upload| upload.upload_id().to_owned()).filter(|id| !id.is_empty());
        upload.ok_or(UploadError::Nonsense { what, problem: "the store names no upload" })
    }

    /// Sends a part, and says what the store calls it.
    pub(super) async fn part(
        &self,
        object: &Begun,
        number: u32,
        bytes: Bytes,
        sum: &Sum,
        retries: &AtomicU64,
    ) -> Result<Box<str>, UploadError> {
        let what = format!("part {number} of {}", object.name);
        let (key, checksum) = (self.key(&object.name), STANDARD.encode(sum));
        let number = u16::try_from(number)
            .map_err(|_| UploadError::Nonsense { what: what.clone(), problem: "too many parts" })?;
        let sign = |time: &Timestamp| {
            let mut action = self.bucket.upload_part(Some(&self.credentials), &key, number, &object.upload);
            action.headers_mut().insert(CHECKSUM, checksum.as_str());
            action.sign_with_time(GOOD_FOR, time).to_string()
        };
        let headers = [(CHECKSUM, checksum.as_str())];
        let answer = self.send(&what, Method::PUT, &sign, &headers, &bytes, retries).await?;
        same_checksum(&what, &answer, &checksum)?;
        // It goes into XML as it is.
        let tag = answer.headers.get(ETAG).and_then(|tag| tag.to_str().ok());
        let tag = tag.filter(|tag| tag.len() <= 256 && !tag.contains(['<', '>', '&']));
        tag.map(Box::from).ok_or(UploadError::Nonsense { what, problem: "the store gives no ETag" })
    }

    /// Makes an object of the parts. The store may say that it has begun (200), and in the end that
    /// it failed.
    pub(super) async fn complete(
        &self,
        object: &Begun,
        parts: &[Part],
        retries: &AtomicU64,
    ) -> Result<(), UploadError> {
        let what = format!("completing {}", object.name);
        let key = self.key(&object.name);
        let sign = |time: &Timestamp| {
            let none = core::iter::empty::<&str>();
            let action =
                self.bucket.complete_multipart_upload(Some(&self.credentials), &key, &object.upload, none);
            action.sign_with_time(GOOD_FOR, time).to_string()
        };
        let (headers, body) = ([(CONTENT_TYPE.as_str(), "application/xml")], Bytes::from(list(parts)));
        let before = retries.load(Ordering::Relaxed);
        let judge = |answer: &Answer| {
            // Nobody else could complete or abort it: it was the try whose answer was lost.
            let is_gone = answer.status == StatusCode::NOT_FOUND && code(&answer.body) == "NoSuchUpload";
            let is_again = retries.load(Ordering::Relaxed) > before;
            let says_so = answer.body.windows(RESULT.len()).any(|window| window == RESULT);
            match self.judge(answer) {
                _ if is_gone && is_again => Verdict::Done,
                Verdict::Done if !says_so => Verdict::Later(None),
                verdict => verdict,
            }
        };
        let insistence = Insistence { client: &self.client, patience: self.patience, retries };
        let make = || request(&sign(&self.now()), Method::POST, &headers, &body);
        insistence.send(&what, make, judge).await.map(drop)
    }

    /// Gives an upload up, so that its parts do not stay.
    pub(super) async fn abort(&self, object: &Begun) -> Result<(), UploadError> {
        let what = format!("giving {} up", object.name);
        let key = self.key(&object.name);
        let sign = |time: &Timestamp| {
            let action = self.bucket.abort_multipart_upload(Some(&self.credentials), &key, &object.upload);
            action.sign_with_time(GOOD_FOR, time).to_string()
        };
        let insistence = Insistence { client: &self.client, patience: ABORT, retries: &AtomicU64::new(0) };
        let make = || request(&sign(&self.now()), Method::DELETE, &[], &Bytes::new());
        insistence.send(&what, make, |answer| self.judge(answer)).await.map(drop)
    }

    /// What was wrong, and did not matter.
    pub(super) fn remarks(&self) -> Vec<String> {
        let ahead = self.ahead.load(Ordering::Relaxed);
        let skew = (ahead != 0).then(|| {
            format!("the clock is wrong by {ahead} s: requests are signed by that of the object store")
        });
        self.client.remark().into_iter().chain(skew).chain(self.expired.clone()).collect()
    }

    /// Wide: a request is what, how, signed by whom, with what.
    async fn send(
        &self,
        what: &str,
        method: Method,
        sign: &(dyn Fn(&Timestamp) -> String + Sync),
        headers: &[(&str, &str)],
        bytes: &Bytes,
        retries: &AtomicU64,
    ) -> Result<Answer, UploadError> {
        let insistence = Insistence { client: &self.client, patience: self.patience, retries };
        let make = || request(&sign(&self.now()), method.clone(), headers, bytes);
        insistence.send(what, make, |answer| self.judge(answer)).await
    }

    fn judge(&self, answer: &Answer) -> Verdict {
        if answer.status == StatusCode::FORBIDDEN && self.takes_time_from(answer) {
            return Verdict::Otherwise;
        }
        // An error in a success is one of the store's own, which may be over later.
        if answer.status.is_success() && !code(&answer.body).is_empty() {
            return Verdict::Later(None);
        }
        judge(answer)
    }

    /// Takes the time from a refusal, if that may have been the reason: once.
    fn takes_time_from(&self, answer: &Answer) -> bool {
        let Some(theirs) = date(&answer.headers) else { return false };
        let Ok(theirs) = theirs.duration_since(SystemTime::UNIX_EPOCH) else { return false };
        let theirs = i64::try_from(theirs.as_secs()).unwrap_or(i64::MAX);
        let off = theirs.saturating_sub(self.now().as_second());
        if off.unsigned_abs() <= SKEW || self.skewed.swap(true, Ordering::Relaxed) {
            return false;
        }
        self.ahead.store(theirs.saturating_sub(now(0).as_second()), Ordering::Relaxed);
        log::warn!("the clock is wrong by {off} s: requests are signed by that of the object store");
        true
    }

    /// What time it is at the store.
    fn now(&self) -> Timestamp {
        now(self.ahead.load(Ordering::Relaxed))
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }
}

fn now(ahead: i64) -> Timestamp {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX).saturating_add(ahead);
    Timestamp::from_second(seconds).unwrap_or_default()
}

/// Whether the keys are good no more, by our clock.
fn expired(keys: &AccessKeys, now: Timestamp) -> Option<String> {
    let expires = keys.expires.parse::<Timestamp>().ok().filter(|expires| *expires < now)?;
    let text = format!("the keys of the object store were good until {expires} only");
    log::warn!("{text}");
    Some(text)
}

fn request(
    signed: &str,
    method: Method,
    headers: &[(&str, &str)],
    bytes: &Bytes,
) -> Result<Request<Body>, hyper::http::Error> {
    let (authority, target) = split(signed);
    let mut request = Request::builder().method(method).uri(target);
    request = request.header(HOST, authority).header(USER_AGENT, AGENT);
    request = request.header(CONTENT_LENGTH, bytes.len()); // of no bytes, too: some refuse a POST without it
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::Whole(bytes.clone()))
}

/// Host and the rest of a URL, as they were signed.
fn split(signed: &str) -> (&str, &str) {
    let rest = signed.split_once("://").map_or(signed, |(_, rest)| rest);
    rest.find('/').map_or((rest, "/"), |at| rest.split_at(at))
}

/// Whether the store has got what was sent, where it tells.
fn same_checksum(what: &str, answer: &Answer, checksum: &str) -> Result<(), UploadError> {
    match answer.headers.get(CHECKSUM) {
        Some(theirs) if theirs.as_bytes() != checksum.as_bytes() => {
            Err(UploadError::Nonsense { what: what.to_owned(), problem: "the store got something else" })
        }
        _ => Ok(()),
    }
}

/// The list of parts that make an object. rusty-s3's has no checksums, without which an upload that
/// was begun with them is refused.
fn list(parts: &[Part]) -> String {
    let mut text = "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">".to_owned();
    for Part { number, sum, tag, .. } in parts {
        let sum = STANDARD.encode(sum);
        let _ = write!(
            text,
            "<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag><ChecksumSHA256>{sum}</ChecksumSHA256></Part>"
        );
    }
    text.push_str("</CompleteMultipartUpload>");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_address_is_taken_apart_as_it_is() {
        let signed = "https://[2001:db8::1]:9000/b/k%20k?X-Amz-Signature=00&partNumber=1";
        assert_eq!(split(signed), ("[2001:db8::1]:9000", "/b/k%20k?X-Amz-Signature=00&partNumber=1"));
        assert_eq!(split("http://h"), ("h", "/"));
        let request = request(signed, Method::POST, &[("x-a", "1")], &Bytes::new()).unwrap();
        assert_eq!(request.headers()[HOST], "[2001:db8::1]:9000");
        assert_eq!(request.headers()[CONTENT_LENGTH], "0");
        assert_eq!(request.uri(), "/b/k%20k?X-Amz-Signature=00&partNumber=1");
    }

    #[test]
    fn parts_are_listed_with_their_checksums() {
        let part = |number, tag: &str| Part { number, bytes: 1, sum: [0; 32], tag: tag.into() };
        let sum = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let listed = |number: u32, tag: &str| {
            format!(
                "<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag><ChecksumSHA256>{sum}</ChecksumSHA256></Part>"
            )
        };
        assert_eq!(
            list(&[part(1, "\"a\""), part(3, "b")]),
            format!(
                "<CompleteMultipartUpload \
                 xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{}{}</CompleteMultipartUpload>",
                listed(1, "\"a\""),
                listed(3, "b")
            )
        );
    }

    #[test]
    fn keys_past_their_time_are_told() {
        let keys = |expires: &str| AccessKeys { expires: expires.to_owned(), ..AccessKeys::default() };
        let at = "2026-11-23T16:05:22Z".parse().unwrap();
        assert_eq!(expired(&keys(""), at), None);
        assert_eq!(expired(&keys("2026-11-23T17:05:22+00:00"), at), None);
        assert!(expired(&keys("2026-11-23T16:05:21Z"), at).unwrap().contains("2026-11-23T16:05:21Z"));
        assert_eq!(expired(&keys("soon"), at), None, "the loader refuses that");
    }
}
