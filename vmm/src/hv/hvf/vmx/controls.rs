//! Which controls of the VMCS are set, by what the framework allows.

use super::api::{Api, Raw, capability};
use super::fields::{entry, exit, pin, primary, secondary};
use crate::error::Error;

/// The controls of every vCPU. What changes while it runs (windows, long mode) is added to these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Controls {
    pub(super) pin: u32,
    pub(super) primary: u32,
    pub(super) secondary: u32,
    pub(super) entry: u32,
    pub(super) exit: u32,
}

impl Controls {
    /// Asks the framework.
    ///
    /// # Errors
    /// [`Error::NoHypervisor`]: it lacks one that cannot be done without.
    pub(super) fn ask(api: &dyn Api) -> Result<Self, Error> {
        let select = |field, what, wanted: u32, needed: u32| -> Result<u32, Error> {
            let answer: Raw<u64> = api.capability(field);
            let none = |why: String| Error::NoHypervisor {
                why: format!(
                    "Hypervisor.framework on this Mac {why}; macOS 11 on an Intel processor of 2010 or newer has it"
                ),
            };
            let allowed = answer.map_err(|error| none(format!("does not tell its {what}: {error}")))?;
            let (required, allowed) = (allowed as u32, (allowed >> 32) as u32);
            match needed & !allowed {
                0 => Ok((wanted | required) & (allowed | required)),
                missing => Err(none(format!("lacks bits {missing:#x} of its {what}"))),
            }
        };
        let windows = primary::INTERRUPT_WINDOW | primary::NMI_WINDOW;
        let stops = primary::HLT | primary::CR8_LOAD | primary::CR8_STORE | primary::TSC_OFFSET;
        let pins = pin::INTERRUPTS | pin::NMI | pin::VIRTUAL_NMI;
        let beyond = secondary::EPT | secondary::UNRESTRICTED | secondary::RDTSCP | secondary::INVPCID;
        let leaving = exit::HOST_LONG | exit::SAVE_EFER | exit::LOAD_EFER;
        Ok(Self {
            pin: select(capability::PIN, "pin-based controls", pins, pin::VIRTUAL_NMI)?,
            primary: select(
                capability::PROCESSOR,
                "processor-based controls",
                stops | primary::PORTS | primary::SECONDARY,
                stops | windows,
            )? & !windows,
            // The framework sets nested paging and unrestricted guests by itself, and may not tell of them.
            secondary: select(capability::SECONDARY, "secondary controls", beyond, 0)?,
            entry: select(capability::ENTRY, "entry controls", entry::LOAD_EFER, entry::LONG)? & !entry::LONG,
            exit: select(capability::EXIT, "exit controls", leaving, 0)?,
        })
    }

    pub(super) fn has(&self, bits: u32) -> bool {
        self.primary & primary::SECONDARY != 0 && self.secondary & bits == bits
    }
}
