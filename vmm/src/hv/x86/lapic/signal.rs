//! What local APICs send each other.

/// What reaches a local APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// An interrupt.
    Fixed {
        /// Its vector.
        vector: u8,
        /// Level-triggered: its end is told as [`Effect::End`].
        level: bool,
    },
    /// Non-maskable.
    Nmi,
    /// INIT.
    Init,
    /// SIPI: begin at page `vector`.
    Startup {
        /// The page, below 1 MiB.
        vector: u8,
    },
}

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// The sender.
    Own,
    /// Everybody.
    All,
    /// Everybody but the sender.
    Others,
    /// Those of this APIC id; 0xff is everybody.
    Physical(u8),
    /// Those with one of these logical ids.
    Logical(u8),
}

/// A signal on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipi {
    /// What is sent.
    pub signal: Signal,
    /// To the receiver with the lowest priority alone.
    pub lowest: bool,
    /// To whom.
    pub to: To,
}

/// What a write to a register does to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Something is sent.
    Send(Ipi),
    /// A level-triggered interrupt ended: the I/O APIC is to be told.
    End(u8),
}
