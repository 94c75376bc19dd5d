//! The client of registries (OCI distribution specification): manifests and blobs in and out, over HTTPS, or HTTP where that
//! was allowed. It knows names, digests and files, and nothing of the store: what comes in is checked here, and becomes an
//! image in [`crate::image`].
//!
//! ```text
//! settings    mirrors, insecure registries, certificates: from a file
//! accounts    who we are: files of docker's form, credential helpers
//! http        one request, one answer: TLS, redirects, timeouts
//! challenge   what a 401 asks for
//! client      requests with tokens, retried: Client, Repository
//! download, upload   blobs
//! ```
//!
//! Rules:
//! * `Authorization` goes to the host it is meant for, and never across a redirect to another one.
//! * Nothing is believed: sizes, digests and media types are compared with what was asked for; text of a registry is cut and
//!   cleaned before it is shown.
//! * What may go over is tried again, a bounded number of times; what cannot change fails at once.

pub mod accounts;
mod challenge;
mod client;
mod download;
mod error;
mod http;
mod retry;
mod settings;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod upload;

pub use accounts::{Account, Accounts, Kept};
pub use client::{Access, Client, Manifest, Repository};
pub use download::{Descriptor, Target};
pub use error::Error;
pub use retry::{Cancel, Patience};
pub use settings::Settings;
pub use upload::Uploaded;
