//! Finds and checks what every microVM boots: the guest kernel (`vmlinux`) and the initramfs (`initramfs.cpio`).
//!
//! The engine calls [`Guest::find`] before each start; it costs one short read of the kernel's header. `servin doctor`
//! and the tests call [`Guest::verify`], which reads the whole kernel. How the kernel is built is told in
//! `guest-kernel/README.md`; `build.sh` there leaves `vmlinux`, `System.map` and `kernel.json` ([`Manifest`]).
//!
//! ```no_run
//! let guest = servin_guest_kernel::Guest::find(None)?;
//! println!("{} ({:?})", guest.kernel.display(), guest.format);
//! # Ok::<(), servin_guest_kernel::Error>(())
//! ```

mod error;
mod find;
mod format;
mod manifest;

pub use error::Error;
pub use find::{Guest, INITRAMFS, KERNEL};
pub use format::KernelFormat;
pub use manifest::{MANIFEST, Manifest};
