//! Writing the file: metadata in one go, then one more pass over the layers for the data that survived.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::format::{BLOCK, DIRENT, Layout, Super, encode_xattrs, put16, put64};
use super::plan::{Extent, Placed, Plan, names, pack, whole_blocks};
use super::tree::{Body, Id, Tree};
use crate::image::Digest;
use crate::{Error, Result, os};

/// Bytes copied at a time.
const CHUNK: usize = 256 * 1024;

/// Where the layers' bytes come from in the second pass.
pub(crate) trait Layers {
    /// The uncompressed stream of a layer, from its start.
    fn open(&self, index: u32) -> Result<Box<dyn Read>>;
    /// For messages.
    fn digest(&self, index: u32) -> Digest;
}

/// Writes the tree into a new file and syncs it. The bytes depend on the tree, the data and the id alone.
pub(crate) fn write(tree: &Tree, layers: &dyn Layers, image: &Digest, path: &Path) -> Result<()> {
    let plan = Plan::new(tree)?;
    let fail = |source| Error::io("write", path, source);
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(path).map_err(fail)?;
    reserve(&file, &plan).map_err(fail)?;
    metadata(tree, &plan, &file).map_err(fail)?;
    let mut rest = plan.extents.as_slice();
    while let Some(first) = rest.first() {
        let count = rest.iter().take_while(|extent| extent.layer == first.layer).count();
        let (extents, others) = rest.split_at(count);
        copy(extents, layers, &file, path)?;
        rest = others;
    }
    seal(&plan, image, &file).map_err(fail)?;
    file.sync_all().map_err(fail)
}

/// Takes the whole space at once, where the file system can: a disk that is too small is then full before, not after, it was
/// filled. The holes of sparse files take none.
fn reserve(file: &File, plan: &Plan) -> io::Result<()> {
    file.set_len(u64::from(plan.blocks) * BLOCK)?;
    let mut run = (0, u64::from(plan.files) * BLOCK);
    for extent in plan.extents.iter().filter(|extent| extent.to >= u64::from(plan.files) * BLOCK) {
        if extent.to > run.1 {
            os::allocate(file, run.0, run.1 - run.0)?;
            run.0 = extent.to / BLOCK * BLOCK;
        }
        run.1 = (extent.to + extent.size).next_multiple_of(BLOCK);
    }
    os::allocate(file, run.0, run.1 - run.0)
}

/// The inodes with what stands behind them, then the blocks of directories and long links.
fn metadata(tree: &Tree, plan: &Plan, file: &File) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(CHUNK, file);
    let mut at = 0;
    let mut bytes = Vec::new();
    for placed in &plan.inodes {
        bytes.clear();
        placed.inode.encode(plan.epoch, &mut bytes);
        encode_xattrs(&tree.node(placed.id).xattrs, &mut bytes);
        if placed.inode.layout == Layout::Inline {
            let data = own_data(tree, plan, placed.id);
            let inline = (placed.inode.size % BLOCK) as usize;
            let start = data.len().saturating_sub(inline);
            bytes.extend_from_slice(data.get(start..).unwrap_or_default());
        }
        at += pad(&mut out, placed.offset - at)?;
        out.write_all(&bytes)?;
        at += bytes.len() as u64;
    }
    for placed in plan.inodes.iter().filter(|placed| whole_blocks(&placed.inode) > 0) {
        let data = own_data(tree, plan, placed.id);
        if data.is_empty() {
            continue;
        }
        let whole = whole_blocks(&placed.inode) * BLOCK;
        let whole = data.get(..whole as usize).unwrap_or(&data);
        let start = u64::from(placed.inode.address) * BLOCK;
        if start != at {
            out.seek(SeekFrom::Start(start))?;
        }
        out.write_all(whole)?;
        at = start + whole.len() as u64;
    }
    out.flush()
}

fn pad(out: &mut impl Write, count: u64) -> io::Result<u64> {
    io::copy(&mut io::repeat(0).take(count), out)
}

/// The data that the tree itself holds: of directories and links. Files have none here.
fn own_data(tree: &Tree, plan: &Plan, id: Id) -> Vec<u8> {
    match &tree.node(id).body {
        Body::Directory { .. } => directory(tree, plan, id),
        Body::Symlink(target) => target.to_vec(),
        _ => Vec::new(),
    }
}

/// Blocks of `struct erofs_dirent`, each with its names behind.
fn directory(tree: &Tree, plan: &Plan, dir: Id) -> Vec<u8> {
    let names = names(tree, dir);
    let (counts, size) = pack(&names);
    let mut out = Vec::with_capacity(size as usize);
    let mut rest = names.as_slice();
    for count in counts {
        out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        let (block, others) = rest.split_at(count);
        rest = others;
        let mut name_at = count * DIRENT;
        for (name, id) in block {
            put64(&mut out, plan.slot(*id));
            put16(&mut out, name_at as u16);
            out.push(kind(&tree.node(*id).body));
            out.push(0);
            name_at += name.len();
        }
        for (name, _) in block {
            out.extend_from_slice(name);
        }
    }
    out
}

/// `EROFS_FT_*`.
fn kind(body: &Body) -> u8 {
    match body {
        Body::File { .. } => 1,
        Body::Directory { .. } => 2,
        Body::CharDevice(..) => 3,
        Body::BlockDevice(..) => 4,
        Body::Fifo => 5,
        Body::Symlink(_) => 7,
    }
}

/// Copies the surviving files of one layer.
fn copy(extents: &[Extent], layers: &dyn Layers, file: &File, path: &Path) -> Result<()> {
    let Some(first) = extents.first() else { return Ok(()) };
    let layer = layers.digest(first.layer);
    let mut stream = layers.open(first.layer)?;
    let mut at = 0;
    let mut buffer = vec![0; CHUNK];
    for extent in extents {
        // The first pass saw these bytes, so an end here means that the blob has changed under us.
        let mut skip = extent.offset.saturating_sub(at);
        while skip > 0 {
            skip -= read(&mut *stream, &mut buffer, skip, &layer)?.len() as u64;
        }
        let (mut to, mut rest) = (extent.to, extent.size);
        while rest > 0 {
            let bytes = read(&mut *stream, &mut buffer, rest, &layer)?;
            file.write_all_at(bytes, to).map_err(|source| Error::io("write", path, source))?;
            to += bytes.len() as u64;
            rest -= bytes.len() as u64;
        }
        at = extent.offset + extent.size;
    }
    Ok(())
}

fn read<'a>(stream: &mut dyn Read, buffer: &'a mut [u8], limit: u64, layer: &Digest) -> Result<&'a [u8]> {
    let want = usize::try_from(limit).unwrap_or(buffer.len()).min(buffer.len());
    let buffer = buffer.get_mut(..want).unwrap_or_default();
    let fail = |source| Error::Layer { layer: *layer, source };
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest) {
            Ok(0) => return Err(fail(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Ok(buffer)
}

/// The superblock comes last: its checksum covers the whole first block.
fn seal(plan: &Plan, image: &Digest, file: &File) -> io::Result<()> {
    let mut uuid = [0; 16];
    for (to, from) in uuid.iter_mut().zip(image.bytes()) {
        *to = *from;
    }
    let root = plan.inodes.first().map_or(0, |root: &Placed| plan.slot(root.id));
    let superblock = Super {
        root: root as u16,
        inodes: plan.inodes.len() as u64,
        epoch: plan.epoch,
        blocks: plan.blocks,
        uuid,
    };
    let mut block = [0; BLOCK as usize];
    file.read_exact_at(&mut block, 0)?;
    superblock.seal(&mut block);
    file.write_all_at(&block, 0)
}
