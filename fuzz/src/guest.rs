//! Decoders of what a guest says or executes.

use servin_init::proto::{Channel, FilesAsk, FilesTell, Frames, GuestMessage, HostMessage, StreamMessage};

/// Any bytes on a connection of the agent's wire, in pieces of any size, on both kinds of connections.
pub fn proto(data: &[u8]) {
    let Some((&first, data)) = data.split_first() else { return };
    let channels = [Channel::HostControl, Channel::GuestControl, Channel::HostStream, Channel::GuestStream];
    // The highest bit turns the streams into those of the file server, so that older inputs mean what they meant.
    let channel = match (channels[usize::from(first & 3)], first >> 7) {
        (Channel::HostStream, 1) => Channel::HostFiles,
        (Channel::GuestStream, 1) => Channel::GuestFiles,
        (channel, _) => channel,
    };
    let mut frames = Frames::new(channel);
    for piece in data.chunks(usize::from(first >> 2) + 1) {
        frames.push(piece);
        loop {
            match frames.next_frame() {
                Ok(Some(frame)) => {
                    // What decodes can be printed; nothing may panic, whichever side reads it.
                    let _ = HostMessage::decode(frame).map(|message| format!("{message:?}"));
                    let _ = GuestMessage::decode(frame).map(|message| format!("{message:?}"));
                    let _ = FilesAsk::decode(frame).map(|message| format!("{message:?}"));
                    let _ = FilesTell::decode(frame).map(|message| format!("{message:?}"));
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

/// Any instructions, registers and memory through the decoder of accesses to devices.
pub fn access(data: &[u8]) {
    servin_vmm::hv::x86::testing::fuzz_access(data);
}

/// Any exits of the Windows Hypervisor Platform through its backend.
pub fn whp(data: &[u8]) {
    servin_vmm::hv::whp::testing::fuzz_exits(data);
}

/// Any accesses and calls through the arm64 interrupt controller, syndromes and PSCI.
pub fn gic(data: &[u8]) {
    servin_vmm::hv::arm64::fuzzing::fuzz(data);
}

/// Any exits of Hypervisor.framework through its backend.
pub fn hvf(data: &[u8]) {
    servin_vmm::hv::hvf::testing::fuzz_exits(data);
}

/// Any exits of Hypervisor.framework on an Intel processor through its backend.
pub fn vmx(data: &[u8]) {
    servin_vmm::hv::hvf::vmx::testing::fuzz_exits(data);
}
