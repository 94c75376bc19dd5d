//! Where everything is, and its bytes. Numbers are little-endian but for the journal's.

/// Bytes of a block.
const BLOCK: u32 = 4096;
/// Blocks of a group: one bit each in a block.
const GROUP: u32 = 32768;
/// Inodes of a group.
const INODES: u32 = 8192;
/// Bytes of an inode.
const INODE: u32 = 256;
/// Blocks of a group's inode table.
const TABLE: u32 = INODES * INODE / BLOCK;
/// Blocks of a group for itself: two bitmaps and the table.
const OWN: u32 = TABLE + 2;
/// A last group smaller than its own blocks and these is left away.
const LEAST_GROUP: u32 = OWN + 64;
/// Bytes of a group descriptor.
const DESCRIPTOR: u32 = 32;
/// The inodes in use: ten that are reserved, `lost+found`, `upper`, `work`.
const USED_INODES: u32 = 13;
const ROOT: u32 = 2;
const JOURNAL: u32 = 8;
const LOST_FOUND: u32 = 11;
const UPPER: u32 = 12;
const WORK: u32 = 13;
/// Directories: the root and the three in it, a block each.
const DIRECTORIES: u32 = 4;

/// The smallest file system in bytes.
pub const LEAST_SIZE: u64 = 16 << 20;
/// The greatest: its group descriptors, in one table behind the superblock, take a quarter of a MiB of the first group.
pub const MOST_SIZE: u64 = 1 << 40;

/// Bits of a group descriptor's flags: the inode bitmap is not written, the block bitmap is not, the inode table is zero.
const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;
const INODE_ZEROED: u16 = 4;

/// Journal, extended attributes, hashed directories, backups where `s_backup_bgs` says (nowhere).
const COMPAT: u32 = 0x4 | 0x8 | 0x20 | 0x200;
/// File types in directories, extents.
const INCOMPAT: u32 = 0x2 | 0x40;
/// Sparse backups, files above 2 GiB and 2 TiB, checksums of descriptors, many subdirectories, great inodes.
const RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40;

/// The layout of one file system.
pub(super) struct Plan {
    blocks: u32,
    groups: u32,
    /// Blocks of the group descriptors.
    descriptors: u32,
    /// Blocks of the journal.
    journal: u32,
    uuid: [u8; 16],
    now: u32,
}

impl Plan {
    pub(super) fn new(size: u64, uuid: [u8; 16], now: u32) -> Option<Self> {
        if !(LEAST_SIZE..=MOST_SIZE).contains(&size) {
            return None;
        }
        let mut blocks = u32::try_from(size / u64::from(BLOCK)).ok()?;
        let rest = blocks % GROUP;
        if blocks > GROUP && rest < LEAST_GROUP {
            blocks -= rest;
        }
        let groups = blocks.div_ceil(GROUP);
        // 16 MiB; a sixteenth of a small disk, but not below the least that the kernel takes.
        let journal = (blocks / 16).clamp(1024, 4096);
        Some(Plan { blocks, groups, descriptors: (groups * DESCRIPTOR).div_ceil(BLOCK), journal, uuid, now })
    }

    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.blocks) * u64::from(BLOCK)
    }

    fn group_blocks(&self, group: u32) -> u32 {
        (self.blocks - group * GROUP).min(GROUP)
    }

    /// The first block that is the group's own: only the first group has superblock and descriptors before it.
    fn own(&self, group: u32) -> u32 {
        group * GROUP + if group == 0 { 1 + self.descriptors } else { 0 }
    }

    /// The first block behind the first inode table: the directories, then the journal.
    fn data(&self) -> u32 {
        self.own(0) + OWN
    }

    fn journal_start(&self) -> u32 {
        self.data() + DIRECTORIES
    }

    /// Blocks in use in a group.
    fn used(&self, group: u32) -> u32 {
        if group == 0 { self.journal_start() + self.journal } else { OWN }
    }

    fn free_blocks(&self) -> u32 {
        (0..self.groups).map(|group| self.group_blocks(group) - self.used(group)).sum()
    }

    /// Everything that is not zero: offset and bytes.
    pub(super) fn pieces(&self) -> Vec<(u64, Vec<u8>)> {
        let at = |block: u32| u64::from(block) * u64::from(BLOCK);
        let own = self.own(0);
        let mut pieces = vec![
            (1024, self.superblock()),
            (at(1), self.group_descriptors()),
            (at(own), bitmap(self.used(0), self.group_blocks(0))),
            (at(own + 1), bitmap(USED_INODES, INODES)),
            (at(own + 2), self.inodes()),
            (at(self.journal_start()), self.journal_superblock()),
        ];
        if let Some(last) = self.groups.checked_sub(1).filter(|last| *last > 0) {
            pieces.push((at(self.own(last)), bitmap(self.used(last), self.group_blocks(last))));
        }
        let root: &[(&str, u32)] = &[("lost+found", LOST_FOUND), ("upper", UPPER), ("work", WORK)];
        for (index, (inode, names)) in (0..).zip([(ROOT, root), (LOST_FOUND, &[]), (UPPER, &[]), (WORK, &[])])
        {
            pieces.push((at(self.data() + index), directory(inode, names)));
        }
        pieces
    }

    fn superblock(&self) -> Vec<u8> {
        let mut sb = Bytes::new(1024);
        sb.u32(0x00, self.groups * INODES);
        sb.u32(0x04, self.blocks);
        sb.u32(0x0c, self.free_blocks());
        sb.u32(0x10, self.groups * INODES - USED_INODES);
        // Block and cluster size: 1024 << 2.
        sb.u32(0x18, 2);
        sb.u32(0x1c, 2);
        sb.u32(0x20, GROUP);
        sb.u32(0x24, GROUP);
        sb.u32(0x28, INODES);
        sb.u32(0x30, self.now);
        // Never checked for having been mounted often.
        sb.u16(0x36, u16::MAX);
        sb.u16(0x38, 0xef53);
        sb.u16(0x3a, 1);
        // On an error it is read-only from then on.
        sb.u16(0x3c, 2);
        sb.u32(0x40, self.now);
        sb.u32(0x4c, 1);
        sb.u32(0x54, LOST_FOUND);
        sb.u16(0x58, INODE as u16);
        sb.u32(0x5c, COMPAT);
        sb.u32(0x60, INCOMPAT);
        sb.u32(0x64, RO_COMPAT);
        sb.put(0x68, &self.uuid);
        sb.u32(0xe0, JOURNAL);
        // The seed of directories' hashes: the name serves, for it is random.
        sb.put(0xec, &self.uuid);
        sb.put(0xfc, &[1, 1]);
        // User attributes and access control lists.
        sb.u32(0x100, 0xc);
        sb.u32(0x108, self.now);
        // Where the journal is, once more.
        sb.put(0x10c, &extent(self.journal_start(), self.journal));
        sb.u32(0x14c, self.journal * BLOCK);
        sb.u16(0x15c, 32);
        sb.u16(0x15e, 32);
        // Signed hashes, as on x86.
        sb.u32(0x160, 1);
        sb.0
    }

    fn group_descriptors(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity((self.groups * DESCRIPTOR) as usize);
        let name = crc16(u16::MAX, &self.uuid);
        for group in 0..self.groups {
            let own = self.own(group);
            let mut gd = Bytes::new(DESCRIPTOR as usize);
            gd.u32(0, own);
            gd.u32(4, own + 1);
            gd.u32(8, own + 2);
            gd.u16(12, (self.group_blocks(group) - self.used(group)) as u16);
            let used = if group == 0 { USED_INODES } else { 0 };
            gd.u16(14, (INODES - used) as u16);
            gd.u16(16, if group == 0 { DIRECTORIES as u16 } else { 0 });
            let unwritten = match group {
                0 => 0,
                // The last group's has an end that is marked.
                last if last + 1 == self.groups => INODE_UNINIT,
                _ => INODE_UNINIT | BLOCK_UNINIT,
            };
            gd.u16(18, INODE_ZEROED | unwritten);
            gd.u16(28, (INODES - used) as u16);
            let sum = crc16(name, &group.to_le_bytes());
            let sum = crc16(sum, gd.0.get(..30).unwrap_or_default());
            gd.u16(30, sum);
            all.append(&mut gd.0);
        }
        all
    }

    /// The inode table up to the last inode in use.
    fn inodes(&self) -> Vec<u8> {
        let mut table = Bytes::new((USED_INODES * INODE) as usize);
        let mut put = |number: u32, mode: u16, links: u16, start: u32, blocks: u32| {
            let mut inode = Bytes::new(INODE as usize);
            inode.u16(0, mode);
            inode.u32(4, blocks * BLOCK);
            [8, 12, 16].into_iter().for_each(|time| inode.u32(time, self.now));
            inode.u16(26, links);
            inode.u32(28, blocks * (BLOCK / 512));
            // It has extents.
            inode.u32(32, 0x8_0000);
            inode.put(40, &extent(start, blocks));
            inode.u16(128, 32);
            inode.u32(144, self.now);
            table.put(((number - 1) * INODE) as usize, &inode.0);
        };
        let data = self.data();
        put(ROOT, 0o040_755, 5, data, 1);
        put(LOST_FOUND, 0o040_700, 2, data + 1, 1);
        put(UPPER, 0o040_755, 2, data + 2, 1);
        put(WORK, 0o040_755, 2, data + 3, 1);
        put(JOURNAL, 0o100_600, 1, self.journal_start(), self.journal);
        table.0
    }

    /// (Documentation/filesystems/ext4/journal.rst; big-endian.)
    fn journal_superblock(&self) -> Vec<u8> {
        let mut sb = Bytes::new(1024);
        let be = |sb: &mut Bytes, at: usize, value: u32| sb.put(at, &value.to_be_bytes());
        be(&mut sb, 0x00, 0xc03b_3998);
        // A superblock of the second version.
        be(&mut sb, 0x04, 4);
        be(&mut sb, 0x0c, BLOCK);
        be(&mut sb, 0x10, self.journal);
        // First block of the log, first sequence number; empty.
        be(&mut sb, 0x14, 1);
        be(&mut sb, 0x18, 1);
        sb.put(0x30, &self.uuid);
        be(&mut sb, 0x40, 1);
        sb.0
    }
}

/// The root of an extent tree with one extent, as it stands in an inode.
fn extent(start: u32, blocks: u32) -> Vec<u8> {
    let mut tree = Bytes::new(60);
    tree.u16(0, 0xf30a);
    tree.u16(2, 1);
    tree.u16(4, 4);
    tree.u16(16, blocks as u16);
    tree.u32(20, start);
    tree.0
}

/// A bitmap of one block: the first `used` bits, and those behind `all`.
fn bitmap(used: u32, all: u32) -> Vec<u8> {
    // Bits below `end` of the byte at `index`.
    let below = |index: u32, end: u32| match end.saturating_sub(index * 8) {
        bits @ 0..8 => (1_u8 << bits) - 1,
        _ => u8::MAX,
    };
    (0..BLOCK).map(|index| below(index, used) | !below(index, all)).collect()
}

/// A directory of one block. All directories have the root as parent.
fn directory(inode: u32, names: &[(&str, u32)]) -> Vec<u8> {
    let mut block = Bytes::new(BLOCK as usize);
    let entries: Vec<(&str, u32)> =
        [(".", inode), ("..", ROOT)].into_iter().chain(names.iter().copied()).collect();
    let mut at = 0;
    for (index, (name, inode)) in entries.iter().enumerate() {
        let last = index + 1 == entries.len();
        let length = if last { BLOCK as usize - at } else { (8 + name.len()).next_multiple_of(4) };
        block.u32(at, *inode);
        block.u16(at + 4, length as u16);
        // The name's length, and that it is a directory.
        block.put(at + 6, &[name.len() as u8, 2]);
        block.put(at + 8, name.as_bytes());
        at += length;
    }
    block.0
}

/// CRC-16 with the polynomial 0x8005, reflected.
fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, byte| {
        let [low, high] = crc.to_le_bytes();
        u16::from(high) ^ CRC16.get(usize::from(low ^ byte)).copied().unwrap_or_default()
    })
}

/// What [`crc16`] makes of each byte.
#[allow(clippy::indexing_slicing, reason = "made by the compiler, which checks it")]
const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let (mut crc, mut bit) = (byte as u16, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// Zeroes with values at offsets.
struct Bytes(Vec<u8>);

impl Bytes {
    fn new(length: usize) -> Self {
        Bytes(vec![0; length])
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }

    fn u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }
}
