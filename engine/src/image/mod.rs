//! Images: what they are called, what they are made of, how they come in and go out.

mod digest;
mod reference;

pub use digest::{Digest, Hashing};
pub use reference::Reference;
