//! The card itself, behind a back end that answers every frame with itself.

use super::testing::Guest;
use super::*;
use crate::testing::Rig;

/// Gives frames back.
#[derive(Default)]
struct Mirror {
    kept: std::collections::VecDeque<Vec<u8>>,
    checksum: Option<(u16, u16)>,
}

impl Backend for Mirror {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }
    fn start(&mut self, _: &mut Port<'_>) -> Result<(), Error> {
        Ok(())
    }
    fn transmit(&mut self, mut frame: Frame<'_>, _: &mut Port<'_>) -> Result<(), Error> {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut frame.data, &mut bytes).unwrap();
        self.kept.push_back(bytes);
        Ok(())
    }
    fn settle(&mut self, port: &mut Port<'_>) -> Result<(), Error> {
        while let Some(frame) = self.kept.pop_front() {
            let outgoing = Outgoing { head: &frame, checksum: self.checksum, ..Outgoing::default() };
            if port.deliver(&outgoing)? == Delivery::NoRoom {
                self.kept.push_front(frame);
                break;
            }
        }
        Ok(())
    }
    fn on_host(&mut self, _: Token, _: Ready, _: &mut Port<'_>) -> Result<(), Error> {
        Ok(())
    }
    fn stop(&mut self, _: &mut Port<'_>) {}
}

fn mirror(features: u64) -> Rig {
    let mut rig = Rig::new(Box::new(Net::new(testing::MAC, Box::new(Mirror::default()))));
    rig.init(features);
    rig
}

const HEADER: [u8; 12] = [0; 12];

#[test]
fn the_address_is_in_the_configuration_and_offloads_are_those_of_the_back_end() {
    let mut rig = mirror(u64::MAX);
    let mut mac = [0; 6];
    rig.read_config(0, &mut mac);
    assert_eq!(Mac(mac), testing::MAC);
    assert_eq!(rig.features() & 1 << bits::VIRTIO_NET_F_HOST_TSO4, 0);
    assert_ne!(rig.features() & 1 << bits::VIRTIO_NET_F_GUEST_TSO4, 0);
    let nat = Guest::new(testing::config(Vec::new()));
    assert_ne!(nat.rig.features() & 1 << bits::VIRTIO_NET_F_HOST_TSO4, 0);
}

#[test]
fn a_long_frame_lies_in_as_many_buffers_as_it_needs() {
    let mut rig = mirror(u64::MAX);
    for _ in 0..4 {
        rig.add(RECEIVE, &[], &[1000]);
    }
    let frame: Vec<u8> = (0..2500).map(|n| n as u8).collect();
    rig.add(TRANSMIT, &[&HEADER, &frame], &[]);
    let first = rig.used(RECEIVE).unwrap();
    assert_eq!(Header::from_bytes(first.data[..12].try_into().unwrap()).num_buffers, 3);
    let rest: Vec<_> = std::iter::from_fn(|| rig.used(RECEIVE)).collect();
    assert_eq!(rest.iter().map(|used| used.len).collect::<Vec<_>>(), [1000, 512]);
    let got = [&first.data[12..], &rest[0].data, &rest[1].data[..512]].concat();
    assert_eq!(got, frame);
}

#[test]
fn without_merged_buffers_a_frame_that_does_not_fit_one_is_lost() {
    let mut rig = mirror(!(1 << bits::VIRTIO_NET_F_MRG_RXBUF));
    rig.add(RECEIVE, &[], &[1000]);
    rig.add(RECEIVE, &[], &[1000]);
    rig.add(TRANSMIT, &[&HEADER, &[7; 1200]], &[]);
    assert!(rig.used(RECEIVE).is_none());
    rig.add(TRANSMIT, &[&HEADER, &[7; 100]], &[]);
    let used = rig.used(RECEIVE).unwrap();
    assert_eq!((used.len, &used.data[12..112]), (112, &[7; 100][..]));
}

#[test]
fn a_frame_waits_for_room_and_every_doorbell_of_new_buffers_is_heard() {
    for features in [u64::MAX, !(1 << 29)] {
        let mut rig = mirror(features);
        rig.add(TRANSMIT, &[&HEADER, b"first"], &[]);
        assert!(rig.used(RECEIVE).is_none());
        for round in 0..300_u16 {
            rig.add(RECEIVE, &[], &[100]);
            let used = rig.used(RECEIVE).unwrap_or_else(|| panic!("round {round}: nothing came"));
            assert_eq!(&used.data[12..17], b"first");
            rig.add(TRANSMIT, &[&HEADER, b"first"], &[]);
            assert!(rig.used(RECEIVE).is_none());
            while rig.used(TRANSMIT).is_some() {}
        }
    }
}

#[test]
fn the_worker_raises_an_interrupt_for_merged_buffers() {
    let mut rig = Rig::threaded(Box::new(Net::new(testing::MAC, Box::new(Mirror::default()))));
    rig.init(u64::MAX);
    for _ in 0..50 {
        rig.add(RECEIVE, &[], &[600]);
        rig.add(RECEIVE, &[], &[600]);
        rig.add(TRANSMIT, &[&HEADER, &[1; 1000]], &[]);
        assert_eq!(rig.wait_used(RECEIVE).len, 600);
        assert_eq!(rig.wait_used(RECEIVE).len, 412);
        rig.wait_used(TRANSMIT);
    }
}

#[test]
fn a_frame_without_a_header_or_a_buffer_without_room_for_one_breaks_the_card_until_a_reset() {
    let mut rig = mirror(u64::MAX);
    rig.add(TRANSMIT, &[&[0; 11]], &[]);
    assert!(rig.needs_reset());
    rig.init(u64::MAX);
    rig.add(RECEIVE, &[], &[11]);
    rig.add(TRANSMIT, &[&HEADER, &[1; 100]], &[]);
    assert!(rig.needs_reset());
    rig.init(u64::MAX);
    rig.add(RECEIVE, &[], &[200]);
    rig.add(TRANSMIT, &[&HEADER, &[1; 100]], &[]);
    assert!(rig.used(RECEIVE).is_some());
}

#[test]
fn a_checksum_is_finished_here_for_a_guest_that_does_not_do_it() {
    let mirror = Mirror { checksum: Some((2, 4)), ..Mirror::default() };
    let mut rig = Rig::new(Box::new(Net::new(testing::MAC, Box::new(mirror))));
    rig.init(!(1 << bits::VIRTIO_NET_F_GUEST_CSUM));
    rig.add(RECEIVE, &[], &[100]);
    rig.add(TRANSMIT, &[&HEADER, &[9, 9, 1, 2, 3, 4, 0, 0, 5, 6]], &[]);
    let used = rig.used(RECEIVE).unwrap();
    assert_eq!(used.data[0], 0);
    assert_eq!(used.data[12..22], [9, 9, 1, 2, 3, 4, 0xf6, 0xf3, 5, 6]);
}

#[test]
fn a_restored_card_goes_on_where_its_rings_were() {
    let mut net = Net::new(testing::MAC, Box::new(Mirror::default()));
    let saved = net.save().unwrap();
    net.restore(&saved).unwrap();
    assert!(net.restore(&[9, 9, 9]).is_err());
}
