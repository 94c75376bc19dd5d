//! Decoders of what a guest says or executes.

use servin_init::proto::{Channel, Frames, GuestMessage, HostMessage, StreamMessage};

/// Any bytes on a connection of the agent's wire, in pieces of any size, on both kinds of connections.
pub fn proto(data: &[u8]) {
    let Some((&first, data)) = data.split_first() else { return };
    let channels = [Channel::HostControl, Channel::GuestControl, Channel::HostStream, Channel::GuestStream];
    let channel = channels[usize::from(first & 3)];
    let mut frames = Frames::new(channel);
    for piece in data.chunks(usize::from(first >> 2) + 1) {
        frames.push(piece);
        loop {
            match frames.next_frame() {
                Ok(Some(frame)) => {
                    // What decodes can be printed; nothing may panic, whichever side reads it.
                    let _ = HostMessage::decode(frame).map(|message| format!("{message:?}"));
                    let _ = GuestMessage::decode(frame).map(|message| format!("{message:?}"));
                    let _ = StreamMessage::decode(frame).map(|message| format!("{message:?}"));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// Any instructions, registers and memory through the instruction assist.
pub fn assist(data: &[u8]) {
    servin_vmm::hv::x86::testing::fuzz_assist(data);
}
