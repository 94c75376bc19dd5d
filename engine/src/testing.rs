//! What tests build layers from.

use std::io::Write;

use tar::{Builder, EntryType, Header};

/// One tar entry.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    name: Vec<u8>,
    kind: EntryType,
    data: Vec<u8>,
    link: String,
    mode: u32,
    owner: (u64, u64),
    time: (i64, u32),
    xattrs: Vec<(String, Vec<u8>)>,
    device: (u32, u32),
}

impl Item {
    fn new(name: &str, kind: EntryType) -> Self {
        Item {
            name: name.into(),
            kind,
            data: Vec::new(),
            link: String::new(),
            mode: if kind == EntryType::Directory { 0o755 } else { 0o644 },
            owner: (0, 0),
            time: (1000, 0),
            xattrs: Vec::new(),
            device: (0, 0),
        }
    }

    pub(crate) fn file(name: &str, data: &[u8]) -> Self {
        Item { data: data.into(), ..Item::new(name, EntryType::Regular) }
    }

    pub(crate) fn dir(name: &str) -> Self {
        Item::new(name, EntryType::Directory)
    }

    pub(crate) fn symlink(name: &str, target: &str) -> Self {
        Item { link: target.into(), ..Item::new(name, EntryType::Symlink) }
    }

    pub(crate) fn hard_link(name: &str, target: &str) -> Self {
        Item { link: target.into(), ..Item::new(name, EntryType::Link) }
    }

    pub(crate) fn fifo(name: &str) -> Self {
        Item::new(name, EntryType::Fifo)
    }

    pub(crate) fn device(name: &str, char: bool, major: u32, minor: u32) -> Self {
        let kind = if char { EntryType::Char } else { EntryType::Block };
        Item { device: (major, minor), ..Item::new(name, kind) }
    }

    pub(crate) fn mode(self, mode: u32) -> Self {
        Item { mode, ..self }
    }

    pub(crate) fn owner(self, uid: u64, gid: u64) -> Self {
        Item { owner: (uid, gid), ..self }
    }

    pub(crate) fn time(self, seconds: i64, nanos: u32) -> Self {
        Item { time: (seconds, nanos), ..self }
    }

    pub(crate) fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs.push((name.into(), value.into()));
        self
    }
}

/// A layer as an uncompressed tar. Names go in as they are, hostile ones too.
pub(crate) fn layer(items: &[Item]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for item in items {
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        pax.push(("path".into(), item.name.clone()));
        if !item.link.is_empty() {
            pax.push(("linkpath".into(), item.link.clone().into_bytes()));
        }
        // As in pax, a negative time with a fraction is the sum of both parts below zero.
        let (seconds, nanos) = item.time;
        let time = match (seconds < 0, nanos) {
            (true, 1..) => format!("-{}.{:09}", -seconds - 1, 1_000_000_000 - nanos),
            _ => format!("{seconds}.{nanos:09}"),
        };
        pax.push(("mtime".into(), time.into_bytes()));
        for (name, value) in &item.xattrs {
            pax.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        tar.append_pax_extensions(pax.iter().map(|(key, value)| (key.as_str(), value.as_slice()))).unwrap();
        let mut header = Header::new_ustar();
        header.set_entry_type(item.kind);
        header.set_mode(item.mode);
        header.set_uid(item.owner.0);
        header.set_gid(item.owner.1);
        header.set_size(item.data.len() as u64);
        if matches!(item.kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(item.device.0).unwrap();
            header.set_device_minor(item.device.1).unwrap();
        }
        header.set_path("short").unwrap();
        header.set_cksum();
        tar.append(&header, item.data.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// gzip of some bytes.
pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// The root file system of an image with this one layer.
pub(crate) fn erofs(layer: &[u8], path: &std::path::Path) {
    struct One(Vec<u8>);
    impl crate::erofs::Layers for One {
        fn open(&self, _: u32) -> crate::Result<Box<dyn std::io::Read>> {
            Ok(Box::new(std::io::Cursor::new(self.0.clone())))
        }
        fn digest(&self, _: u32) -> crate::image::Digest {
            crate::image::Digest::of(&self.0)
        }
    }
    let mut tree = crate::erofs::Tree::new();
    tree.begin_layer(0);
    let mut tar = crate::image::tar::Tar::new(layer);
    while let Some(entry) = tar.next_entry().unwrap() {
        tree.apply(&entry).unwrap();
    }
    crate::erofs::write(&tree, &One(layer.to_vec()), &crate::image::Digest::of(b"test"), path).unwrap();
}
