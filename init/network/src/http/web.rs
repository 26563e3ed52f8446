//! A web server that takes PUT: nginx with `dav_methods PUT`, Apache with mod_dav, and whatever
//! else stores what it is sent.
//!
//! Nothing else is asked of it, so nothing there is ever read, renamed or deleted. A directory that
//! is missing is the server's to make (`create_full_put_path on` in nginx).

use core::sync::atomic::AtomicU64;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, InvalidHeaderValue, USER_AGENT,
};
use hyper::http::request::Builder;
use hyper::{Method, Request};

use base::facts::Secret;

use super::body::Body;
use super::client::{Answer, Client};
use super::insist::{Code, Insistence, UploadError, judge};
use super::object::Sum;

/// Who asks.
pub(super) const AGENT: &str = concat!("afterimage/", env!("CARGO_PKG_VERSION"));

/// The directory of a capture.
pub(super) struct Web {
    pub(super) client: Arc<Client>,
    pub(super) patience: Duration,
    /// `Host` header.
    pub(super) authority: String,
    /// Path of the capture's directory: begins with a slash, ends without one.
    pub(super) path: String,
    pub(super) token: Secret,
}

impl Web {
    /// Puts a file there. A server that keeps to RFC 9530 refuses it if it is not what was sent.
    pub(super) async fn put(
        &self,
        name: &str,
        bytes: Bytes,
        sum: &Sum,
        retries: &AtomicU64,
    ) -> Result<(), UploadError> {
        let digest = format!("sha-256=:{}:", STANDARD.encode(sum));
        let make = || {
            let request = self.request(name)?.header("content-digest", &digest);
            request.header(CONTENT_LENGTH, bytes.len()).body(Body::Whole(bytes.clone()))
        };
        let insistence = Insistence { client: &self.client, patience: self.patience, retries };
        insistence.send(name, make, judge).await.map(drop)
    }

    /// Puts a file there of which only the beginning is known: once, on a connection of its own.
    pub(super) async fn stream(&self, name: &str, body: Body) -> Result<(), UploadError> {
        let what = || name.to_owned();
        let request = self.request(name).and_then(|request| request.body(body));
        let request = request.map_err(|source| UploadError::Request { what: what(), source })?;
        let sent: Result<Answer, _> = self.client.send(request, true).await;
        let answer = sent.map_err(|source| UploadError::Unanswered { what: what(), tries: 1, source })?;
        if answer.status.is_success() {
            return Ok(());
        }
        Err(UploadError::Refused { what: what(), status: answer.status, code: Code::default() })
    }

    /// What was wrong, and did not matter.
    pub(super) fn remarks(&self) -> Vec<String> {
        self.client.remark().into_iter().collect()
    }

    fn request(&self, name: &str) -> Result<Builder, hyper::http::Error> {
        let request = Request::builder().method(Method::PUT).uri(format!("{}/{name}", self.path));
        let request = request.header(HOST, &self.authority).header(USER_AGENT, AGENT);
        let request = request.header(CONTENT_TYPE, "application/octet-stream");
        Ok(match bearer(&self.token)? {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        })
    }
}

/// The value of `Authorization`, if there is a token.
pub(super) fn bearer(token: &Secret) -> Result<Option<HeaderValue>, InvalidHeaderValue> {
    if token.is_empty() {
        return Ok(None);
    }
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose().trim()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}
