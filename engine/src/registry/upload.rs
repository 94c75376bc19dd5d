//! Blobs out. (OCI distribution specification, "Pushing blobs".)

use std::path::Path;

use super::Error;
use super::client::Repository;
use super::download::Descriptor;
use super::http::{Answer, Call, Payload, resolve};
use super::retry::Trouble;
use crate::Result;

/// How a blob got into a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// It was there.
    Known,
    /// The registry took it from another of its repositories.
    Mounted,
    /// It was sent.
    Sent,
}

impl Repository<'_> {
    /// Whether the repository has a blob.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        let what = || format!("blob {} of {}", blob.digest, self.name());
        self.retry(&what, &mut |repository| {
            let url = repository.url(&format!("blobs/{}", blob.digest))?;
            let call = Call { method: "HEAD", url: &url, headers: &[], payload: Payload::None };
            let answer = repository.call(&call, &what)?;
            // Some registries answer 202 or 3xx elsewhere; only a plain yes counts, with the size if it says one.
            if answer.status == 404 {
                return Ok(false);
            }
            let answer = repository.expect(answer, &[200], &what)?;
            let length = answer.header("content-length").and_then(|text| text.parse::<u64>().ok());
            Ok(length.is_none_or(|length| length == blob.size))
        })
    }

    /// Sends a blob that is in a file, unless the repository has it, or one of the other repositories of the registry, `from`,
    /// can give it.
    ///
    /// # Errors
    /// Those of [`Error`].
    pub fn send_blob(&self, blob: &Descriptor, file: &Path, from: &[String]) -> Result<Uploaded> {
        if self.has_blob(blob)? {
            return Ok(Uploaded::Known);
        }
        let what = || format!("blob {} of {}", blob.digest, self.name());
        // A mount that is refused is no reason to fail: the registry then begins an upload.
        let mut sources = from.iter();
        self.retry(&what, &mut |repository| {
            let mount = match sources.next() {
                Some(path) => format!("?mount={}&from={path}", blob.digest),
                None => String::new(),
            };
            let url = repository.url(&format!("blobs/uploads/{mount}"))?;
            let call = Call { method: "POST", url: &url, headers: &[], payload: Payload::Bytes(&[]) };
            let answer = repository.call(&call, &what)?;
            let answer = match answer.status {
                // Not to be read from there, or unknown there.
                400 | 401 | 403 | 404 | 405 if !mount.is_empty() => {
                    let url = repository.url("blobs/uploads/")?;
                    let call = Call { url: &url, ..call };
                    repository.call(&call, &what)?
                }
                _ => answer,
            };
            let answer = repository.expect(answer, &[201, 202], &what)?;
            if answer.status == 201 {
                return Ok(Uploaded::Mounted);
            }
            let place = place(&answer, &url, &what)?;
            let separator = if place.contains('?') { '&' } else { '?' };
            let url = format!("{place}{separator}digest={}", blob.digest);
            let headers = [("content-type", "application/octet-stream".to_owned())];
            let payload = Payload::File(file, blob.size);
            let call = Call { method: "PUT", url: &url, headers: &headers, payload };
            let answer = repository.call(&call, &what)?;
            // The upload's own place may be gone, after a restart of the registry for one: begin another.
            if answer.status == 404 {
                return Err(Trouble::passing("the registry has lost the upload"));
            }
            repository.expect(answer, &[201, 204], &what)?;
            Ok(Uploaded::Sent)
        })
    }
}

/// Where an upload goes on.
fn place(answer: &Answer, url: &str, what: &dyn Fn() -> String) -> Result<String, Trouble> {
    let malformed = |why: &str| Error::Malformed { what: what(), why: why.into() };
    let location = answer.header("location").ok_or_else(|| malformed("an upload without a place"))?;
    let base = url.parse().map_err(|_| malformed("the URL of the upload"))?;
    let place = resolve(&base, location).ok_or_else(|| malformed("the place of the upload"))?;
    if base.scheme_str() == Some("https") && place.scheme_str() != Some("https") {
        return Err(malformed("the upload leads from https to http").into());
    }
    Ok(place.to_string())
}
