use std::io::Write as _;

use super::*;
use crate::os::{read_exact_at, write_all_at};
use crate::testing::Rig;

const DISK: u64 = 64 * SECTOR;

fn disk() -> (File, File) {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..DISK / SECTOR {
        file.write_all(&[sector as u8; SECTOR as usize]).unwrap();
    }
    (file.try_clone().unwrap(), file)
}

fn rig(read_only: bool) -> (Rig, File) {
    let (ours, theirs) = disk();
    (Rig::started(Box::new(Blk::new(theirs, DISK / SECTOR, read_only, "servin-disk"))), ours)
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// The status byte of a request: the last writable one.
fn status(used: &crate::testing::Used) -> u8 {
    *used.data.last().unwrap()
}

#[test]
fn sectors_are_read_where_they_lie() {
    let (mut rig, _) = rig(false);
    let used = rig.ask(0, &[&header(blk::VIRTIO_BLK_T_IN, 3)], &[512, 512, 1]);
    assert_eq!((used.len, status(&used)), (1025, 0));
    assert!(
        used.data[..512].iter().all(|&byte| byte == 3) && used.data[512..1024].iter().all(|&byte| byte == 4)
    );
}

#[test]
fn requests_in_flight_together_are_all_answered_on_the_real_thread() {
    let (_, theirs) = disk();
    let mut rig = Rig::threaded(Box::new(Blk::new(theirs, DISK / SECTOR, false, "")));
    rig.init(u64::MAX);
    let sectors: Vec<u64> = (0..60).collect();
    let mut heads = std::collections::HashMap::new();
    for &sector in &sectors {
        heads.insert(rig.add(0, &[&header(blk::VIRTIO_BLK_T_IN, sector)], &[512, 1]), sector as u8);
    }
    for _ in &sectors {
        let used = rig.wait_used(0);
        assert_eq!((status(&used), used.data[0]), (0, heads[&used.head]));
    }
}

#[test]
fn the_status_may_share_a_descriptor_with_the_data() {
    let (mut rig, _) = rig(false);
    let used = rig.ask(0, &[&header(blk::VIRTIO_BLK_T_IN, 5)], &[513]);
    assert_eq!((used.len, status(&used), used.data[511]), (513, 0, 5));
}

#[test]
fn sectors_are_written_and_flushed() {
    let (mut rig, file) = rig(false);
    let used = rig.ask(0, &[&header(blk::VIRTIO_BLK_T_OUT, 2), &[0xaa; 700], &[0xbb; 324]], &[1]);
    assert_eq!((used.len, status(&used)), (1, 0));
    assert_eq!(status(&rig.ask(0, &[&header(blk::VIRTIO_BLK_T_FLUSH, 0)], &[1])), 0);
    let mut got = [0; 1026];
    read_exact_at(&file, &mut got, 1023).unwrap();
    assert_eq!((got[0], got[1], got[700], got[701], got[1024], got[1025]), (1, 0xaa, 0xaa, 0xbb, 0xbb, 4));
}

#[test]
fn a_read_only_disk_refuses_every_change_even_unasked() {
    let (mut rig, file) = rig(true);
    assert_eq!(rig.features() >> blk::VIRTIO_BLK_F_RO & 1, 1);
    let requests = [
        rig.ask(0, &[&header(blk::VIRTIO_BLK_T_OUT, 0), &[9; 512]], &[1]),
        rig.ask(0, &[&header(blk::VIRTIO_BLK_T_DISCARD, 0), &range(0, 1, 0)], &[1]),
        rig.ask(0, &[&header(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0), &range(1, 1, 0)], &[1]),
    ];
    assert!(requests.iter().all(|used| status(used) == 1));
    let mut got = [9; 1024];
    read_exact_at(&file, &mut got, 0).unwrap();
    assert_eq!((got[0], got[600]), (0, 1));
}

#[test]
fn requests_past_the_end_or_in_part_sectors_are_io_errors() {
    let (mut rig, file) = rig(false);
    for (kind, sector, len) in [
        (blk::VIRTIO_BLK_T_IN, 64, 512),
        (blk::VIRTIO_BLK_T_IN, 63, 1024),
        (blk::VIRTIO_BLK_T_IN, u64::MAX, 512),
        (blk::VIRTIO_BLK_T_IN, 0, 100),
    ] {
        let used = rig.ask(0, &[&header(kind, sector)], &[len, 1]);
        assert_eq!(status(&used), 1, "{sector} {len}");
    }
    assert_eq!(status(&rig.ask(0, &[&header(blk::VIRTIO_BLK_T_OUT, 63), &[1; 1024]], &[1])), 1);
    assert_eq!(file.metadata().unwrap().len(), DISK);
}

#[test]
fn a_disk_over_a_base_gets_its_own_file_with_the_first_write_and_leaves_the_base() {
    let (base, theirs) = disk();
    let own = tempfile::tempfile().unwrap();
    let (kept, mut made) = (own.try_clone().unwrap(), 0);
    let blk = Blk::copy_on_write(theirs, DISK / SECTOR, "", move |base| {
        made += 1;
        assert_eq!(made, 1, "it is made once");
        let mut all = vec![0; DISK as usize];
        read_exact_at(base, &mut all, 0)?;
        write_all_at(&own, &all, 0)?;
        own.try_clone()
    });
    let mut rig = Rig::started(Box::new(blk));
    let read = |rig: &mut Rig| rig.ask(0, &[&header(blk::VIRTIO_BLK_T_IN, 3)], &[512, 1]).data[0];
    assert_eq!(read(&mut rig), 3);
    assert_eq!(status(&rig.ask(0, &[&header(blk::VIRTIO_BLK_T_FLUSH, 0)], &[1])), 0);
    assert_eq!(kept.metadata().unwrap().len(), 0, "reading and flushing make nothing");
    for byte in [8, 9] {
        let used = rig.ask(0, &[&header(blk::VIRTIO_BLK_T_OUT, 3), &[byte; 512]], &[1]);
        assert_eq!((status(&used), read(&mut rig)), (0, byte));
    }
    let mut got = [0; 2];
    read_exact_at(&base, &mut got, 4 * SECTOR - 1).unwrap();
    assert_eq!(got, [3, 4]);
    read_exact_at(&kept, &mut got, 4 * SECTOR - 1).unwrap();
    assert_eq!(got, [9, 4]);
}

#[test]
fn a_disk_whose_file_cannot_be_made_is_a_failing_disk_that_can_be_read() {
    let (_, theirs) = disk();
    let full = |_: &File| Err(io::ErrorKind::StorageFull.into());
    let mut rig = Rig::started(Box::new(Blk::copy_on_write(theirs, DISK / SECTOR, "", full)));
    assert_eq!(status(&rig.ask(0, &[&header(blk::VIRTIO_BLK_T_OUT, 3), &[8; 512]], &[1])), 1);
    let used = rig.ask(0, &[&header(blk::VIRTIO_BLK_T_IN, 3)], &[512, 1]);
    assert_eq!((status(&used), used.data[0]), (0, 3));
}

#[test]
fn zeroes_and_discards_clear_ranges_and_keep_the_size() {
    let (mut rig, file) = rig(false);
    let ranges = [range(1, 2, 0), range(10, 1, 1)].concat();
    assert_eq!(status(&rig.ask(0, &[&header(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0), &ranges], &[1])), 0);
    assert_eq!(status(&rig.ask(0, &[&header(blk::VIRTIO_BLK_T_DISCARD, 0), &range(16, 16, 0)], &[1])), 0);
    let mut got = vec![0; DISK as usize];
    read_exact_at(&file, &mut got, 0).unwrap();
    assert_eq!((got[511], got[512], got[1535], got[1536], got[5120]), (0, 0, 0, 3, 0));
    assert_eq!(file.metadata().unwrap().len(), DISK);
    assert_eq!(status(&rig.ask(0, &[&header(blk::VIRTIO_BLK_T_DISCARD, 0), &range(0, 1, 1)], &[1])), 2);
    assert_eq!(status(&rig.ask(0, &[&header(blk::VIRTIO_BLK_T_DISCARD, 0), &range(64, 1, 0)], &[1])), 1);
    assert_eq!(status(&rig.ask(0, &[&header(blk::VIRTIO_BLK_T_DISCARD, 0), &[0; 15]], &[1])), 1);
}

#[test]
fn the_identity_and_the_capacity_are_told() {
    let (mut rig, _) = rig(false);
    let used = rig.ask(0, &[&header(blk::VIRTIO_BLK_T_GET_ID, 0)], &[20, 1]);
    assert_eq!((&used.data[..12], used.len, status(&used)), (&b"servin-disk\0"[..], 21, 0));
    let mut capacity = [0; 8];
    rig.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 64);
}

#[test]
fn unknown_requests_are_unsupported_and_malformed_ones_need_a_reset() {
    let (mut rig, _) = rig(false);
    assert_eq!(status(&rig.ask(0, &[&header(77, 0)], &[1])), 2);
    rig.add(0, &[&[0; 15]], &[1]);
    assert!(rig.needs_reset());
    rig.init(u64::MAX);
    rig.add(0, &[&header(0, 0)], &[]);
    assert!(rig.needs_reset());
}

#[test]
fn a_disk_of_another_size_is_refused_at_restore() {
    let (_, file) = disk();
    let mut blk = Blk::new(file, 64, false, "");
    let saved = blk.save().unwrap();
    blk.restore(&saved).unwrap();
    blk.sectors = 63;
    assert!(matches!(blk.restore(&saved), Err(StateError::Mismatch { .. })));
}

#[test]
fn files_that_cannot_be_disks_are_refused_with_the_reason() {
    let missing = Blk::open(Path::new("/nonexistent/disk"), true, "").unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/disk"));
    let mut odd = tempfile::NamedTempFile::new().unwrap();
    odd.write_all(&[0; 513]).unwrap();
    assert!(matches!(Blk::open(odd.path(), true, ""), Err(OpenError::Size { size: 513, .. })));
}
