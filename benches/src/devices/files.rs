//! A share: FUSE requests through the queue and the server to a directory of this host.

use std::io;
use std::time::Duration;

use servin_devices::virtio::fs::host::{HostFs, Options};
use servin_devices::virtio::fs::testing::Client;
use servin_devices::virtio::fs::vfs::ROOT;

use super::{Rate, rate};

const FILE: u64 = 8 << 20;
const BLOCK: u32 = 128 << 10;

/// Lookups, attributes, and reads and writes of 128 KiB in a second. The file is in the host's page cache.
///
/// # Errors
/// If the directory cannot be made or shared.
pub fn files(time: Duration) -> Result<Vec<Rate>, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("file"), vec![7; FILE as usize])?;
    let fs = HostFs::directory(folder.path(), Options::default())?;
    let mut client = Client::new(Box::new(fs));
    let failed = |errno| io::Error::other(format!("the share: {errno:?}"));
    let node = client.lookup(ROOT, "file").map_err(failed)?.node;
    let handle = client.open(node, 2).map_err(failed)?; // O_RDWR
    let mut rates = Vec::new();
    let mut broken = None;
    rates.push(rate("fs: lookup and forget", 0, time, || {
        match client.lookup(ROOT, "file") {
            Ok(stat) => client.forget(stat.node, 1),
            Err(errno) => broken = Some(errno),
        }
        1
    }));
    rates.push(rate("fs: getattr", 0, time, || {
        broken = client.getattr(node).err().or(broken.take());
        1
    }));
    let mut at = 0;
    rates.push(rate("fs: read of 128 KiB", BLOCK.into(), time, || {
        broken = client.read(handle, at, BLOCK).err().or(broken.take());
        at = (at + u64::from(BLOCK)) % FILE;
        1
    }));
    let block = vec![9; BLOCK as usize];
    rates.push(rate("fs: write of 128 KiB", BLOCK.into(), time, || {
        broken = client.write(handle, at, &block).err().or(broken.take());
        at = (at + u64::from(BLOCK)) % FILE;
        1
    }));
    broken.map_or(Ok(rates), |errno| Err(failed(errno).into()))
}
