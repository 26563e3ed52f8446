//! What a target on the web keeps of a capture: objects by name, whole or in parts. Here it is only
//! told apart which kind it is.

use core::sync::atomic::AtomicU64;

use hyper::body::Bytes;

use super::insist::UploadError;
use super::object::{Begun, Part, part_name, sum};
use super::s3::S3;
use super::web::Web;

/// The place of one capture.
pub(super) enum Store {
    Web(Web),
    S3(S3),
}

impl Store {
    /// Puts a whole object there.
    pub(super) async fn put(&self, name: &str, bytes: Bytes, retries: &AtomicU64) -> Result<(), UploadError> {
        let sum = sum(&bytes);
        match self {
            Self::Web(web) => web.put(name, bytes, &sum, retries).await,
            Self::S3(s3) => s3.put(name, bytes, &sum, retries).await,
        }
    }

    /// Begins an object that is sent in parts.
    pub(super) async fn begin(&self, name: &str, retries: &AtomicU64) -> Result<Begun, UploadError> {
        let _ = retries;
        let upload = match self {
            Self::Web(_) => String::new(),
            Self::S3(s3) => s3.begin(name, retries).await?,
        };
        Ok(Begun { name: name.to_owned(), upload })
    }

    /// Sends a part, numbered from 1.
    pub(super) async fn part(
        &self,
        object: &Begun,
        number: u32,
        bytes: Bytes,
        retries: &AtomicU64,
    ) -> Result<Part, UploadError> {
        let (len, sum) = (base::addr::to_u64(bytes.len()), sum(&bytes));
        let tag = match self {
            Self::Web(web) => {
                web.put(&part_name(&object.name, number), bytes, &sum, retries).await?;
                Box::default()
            }
            Self::S3(s3) => s3.part(object, number, bytes, &sum, retries).await?,
        };
        Ok(Part { number, bytes: len, sum, tag })
    }

    /// Makes one object of its parts.
    pub(super) async fn complete(
        &self,
        object: &Begun,
        parts: &[Part],
        retries: &AtomicU64,
    ) -> Result<(), UploadError> {
        let _ = (object, parts, retries);
        match self {
            Self::Web(_) => Ok(()), // they stay what they are, and the index says how they go together
            Self::S3(s3) => s3.complete(object, parts, retries).await,
        }
    }

    /// Lets go of an object that will not be complete. Parts on a web server stay: we ask for no
    /// right to delete anything.
    pub(super) async fn abort(&self, object: &Begun) -> Result<(), UploadError> {
        let _ = object;
        match self {
            Self::Web(_) => Ok(()),
            Self::S3(s3) => s3.abort(object).await,
        }
    }

    /// Whether parts are files of their own, so that an index has to list them.
    pub(super) fn keeps_parts(&self) -> bool {
        matches!(self, Self::Web(_))
    }

    /// What was wrong, and did not matter.
    pub(super) fn remarks(&self) -> Vec<String> {
        match self {
            Self::Web(web) => web.remarks(),
            Self::S3(s3) => s3.remarks(),
        }
    }
}
