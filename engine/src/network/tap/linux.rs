//! Taps of Linux.

// TUNSETIFF takes its request by pointer (linux/if_tun.h), and has no safe wrapper among our dependencies.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Tap;
use crate::network::NetworkError;
use crate::{Error, Result};

/// Where the kernel hands out taps.
const DEVICE: &str = "/dev/net/tun";
/// The host's network devices.
const DEVICES: &str = "/sys/class/net";
/// IFF_UP (linux/if.h).
const UP: u32 = 1;

/// Opens the tap, which must be there: the kernel would make one for root, and nobody would be at its other end.
pub(super) fn open(tap: &Tap) -> Result<File> {
    let refuse = |why: String, source: Option<io::Error>| -> Error {
        NetworkError::Tap { name: tap.name.clone(), why, source }.into()
    };
    let name = &tap.name;
    let device = Path::new(DEVICES).join(name);
    if !Tap::is_name(name) || !device.exists() {
        let why =
            format!("there is none; make one with \"ip tuntap add dev {name} mode tap user $USER\", as root");
        return Err(refuse(why, None));
    }
    let Some(flags) = number(&device.join("tun_flags")).filter(|flags| flags & libc::IFF_TAP as u32 != 0)
    else {
        return Err(refuse("it is a network device of another kind".into(), None));
    };
    if number(&device.join("flags")).is_some_and(|flags| flags & UP == 0) {
        let why = format!("it is down; bring it up with \"ip link set dev {name} up\", as root");
        return Err(refuse(why, None));
    }
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE);
    let file = file.map_err(|source| {
            let what = match source.kind() {
                io::ErrorKind::NotFound => {
                    "is not there; \"modprobe tun\" makes it, or, in a container of the host's, give it that device"
                }
                io::ErrorKind::PermissionDenied => "is not yours to open; its mode is usually 0666",
                _ => "cannot be opened",
            };
            refuse(format!("{DEVICE} {what}"), Some(source))
        })?;
    // A device of several queues takes nobody who does not know of them.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | flags.cast_signed() & libc::IFF_MULTI_QUEUE;
    attach(&file, name, flags).map_err(|source| {
            let why = match source.raw_os_error() {
                Some(libc::EPERM) => format!(
                    "it is another user's; give it to yourself with \"ip tuntap add dev {name} mode tap user $USER\", \
                     as root, after \"ip tuntap del dev {name} mode tap\""
                ),
                Some(libc::EBUSY) => "something else has it, and one card at a time is all that it takes".into(),
                _ => "the kernel does not give it".into(),
            };
            refuse(why, Some(source))
        })?;
    Ok(file)
}

/// The number in a file of sysfs, such as 0x1003.
fn number(path: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(path).ok()?;
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

/// Makes `file` the other end of the tap `name`; frames carry no header and are no longer than its MTU.
fn attach(file: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    let bytes = name.bytes().chain(std::iter::repeat(0));
    let mut ifr_name = [0; libc::IFNAMSIZ];
    ifr_name.iter_mut().zip(bytes).for_each(|(place, byte)| *place = libc::c_char::from_ne_bytes([byte]));
    let ifr_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    let mut request =
        libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: ifr_flags } };
    // SAFETY: the request is a whole struct ifreq, which the kernel reads and writes during the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let none: libc::c_ulong = 0;
    // SAFETY: this call takes a number and no pointer.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, none) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
