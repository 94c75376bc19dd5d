//! The virtio socket device (virtio 1.2, 5.10): stream sockets between guest and host.

pub mod conn;
pub mod packet;
