//! What is saved of a machine and of a vCPU: opaque to everybody but the backend that wrote it.

use serde::{Deserialize, Serialize};
use servin_devices::state::{self, State, StateError};

/// The saved interrupt controller and clocks of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    backend: String,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
}

/// The saved registers of a vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    backend: String,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
}

macro_rules! opaque {
    ($type:ident, $name:literal) => {
        impl $type {
            /// Wraps the state of `backend`.
            ///
            /// # Errors
            /// The state could not be encoded.
            pub fn new<S: State>(backend: &str, state: &S) -> Result<Self, StateError> {
                Ok(Self { backend: backend.to_owned(), bytes: state::encode(state)? })
            }

            /// The state, if `backend` wrote it.
            ///
            /// # Errors
            /// Another backend or another version wrote it, or it is damaged.
            pub fn open<S: State>(&self, backend: &str) -> Result<S, StateError> {
                if self.backend != backend {
                    return Err(StateError::Mismatch {
                        what: S::NAME,
                        why: format!("it was saved by {}, this is {backend}", self.backend),
                    });
                }
                state::decode(&self.bytes)
            }
        }

        impl State for $type {
            const NAME: &'static str = $name;
            const VERSION: u16 = 1;
        }
    };
}

opaque!(MachineState, "machine");
opaque!(VcpuState, "vCPU");
