//! The registers of the transport as the driver reads and writes them (virtio 1.2, 4.2.2), and the status machine.

use virtio_bindings::bindings::{virtio_config as config, virtio_mmio as reg};

use super::super::{Activation, Error};
use super::{CONFIG, DRIVER_OK, FEATURES_OK, MmioTransport, Slot};
use crate::bus::{BusDevice, BusError};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"srvn");

const ACKNOWLEDGE: u32 = config::VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = config::VIRTIO_CONFIG_S_DRIVER;
const NEEDS_RESET: u32 = config::VIRTIO_CONFIG_S_NEEDS_RESET;
const FAILED: u32 = config::VIRTIO_CONFIG_S_FAILED;

impl MmioTransport {
    /// Virtio 1.2, 2.1 and 3.1.1: bits are only added, in order, until a reset.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let added = value & !self.status;
        if self.status & !NEEDS_RESET & !value != 0 {
            log::warn!("virtio device {}: driver took status bits back ({value:#x})", self.device_id);
            return;
        }
        let order = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
        let skipped = order.iter().rev().skip_while(|&&bit| value & bit == 0).any(|&bit| value & bit == 0);
        if added & FAILED == 0 && skipped {
            log::warn!("virtio device {}: driver skipped a step of the status ({value:#x})", self.device_id);
            return;
        }
        if added & FEATURES_OK != 0 && !self.features_fit() {
            // The driver reads the bit back and finds it clear.
            self.status |= value & !FEATURES_OK & !DRIVER_OK;
            return;
        }
        self.status |= value & (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED);
        if added & DRIVER_OK != 0 && self.status & FAILED == 0 {
            let activated = self.activate(&[]).and_then(|()| self.resume());
            if let Err(error) = activated {
                self.fail(error);
            }
        }
    }

    fn fail(&mut self, error: Error) {
        match (&self.activation, error) {
            (Activation::Thread(faults), error @ Error::Host { .. }) => faults(error),
            (_, error) => {
                log::warn!("virtio device {}: {error}; it waits for a reset", self.device_id);
                let _ = self.interrupt.need_reset();
            }
        }
    }

    fn features_fit(&self) -> bool {
        self.driver_features & !self.device_features == 0
            && self.driver_features & (1 << config::VIRTIO_F_VERSION_1) != 0
    }

    fn selected(&self) -> Option<usize> {
        usize::try_from(self.queue_select).ok().filter(|&index| index < self.queues.len())
    }

    fn read_register(&self, offset: u32) -> Option<u32> {
        let queue = self.selected().and_then(|index| self.queues.get(index));
        Some(match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => 2,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device_id,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => word(self.device_features, self.device_features_select),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.selected().and_then(|index| self.max_sizes.get(index)).map_or(0, |&max| max.into())
            }
            reg::VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(|queue| queue.ready).into(),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            reg::VIRTIO_MMIO_STATUS => {
                self.status | if self.interrupt.needs_reset() { NEEDS_RESET } else { 0 }
            }
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.config.generation(),
            // No shared memory regions: length and base of each are all ones (4.2.2).
            reg::VIRTIO_MMIO_SHM_LEN_LOW..=reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => return None,
        })
    }

    fn write_register(&mut self, offset: u32, value: u32) -> Option<()> {
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => {
                if self.status & FEATURES_OK == 0 && self.driver_features_select < 2 {
                    set_word(&mut self.driver_features, self.driver_features_select, value);
                }
            }
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(doorbell) = self.doorbells.get(value as usize) {
                    doorbell.signal();
                }
            }
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::VIRTIO_MMIO_STATUS => self.write_status(value),
            reg::VIRTIO_MMIO_SHM_SEL => {}
            _ => return self.write_queue_register(offset, value),
        }
        Some(())
    }

    fn write_queue_register(&mut self, offset: u32, value: u32) -> Option<()> {
        let frozen = self.status & (FEATURES_OK | DRIVER_OK) != FEATURES_OK;
        let queue = self.selected().and_then(|index| self.queues.get_mut(index));
        let field = match offset {
            reg::VIRTIO_MMIO_QUEUE_NUM | reg::VIRTIO_MMIO_QUEUE_READY => None,
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW | reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => Some(0),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW | reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => Some(1),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW | reg::VIRTIO_MMIO_QUEUE_USED_HIGH => Some(2),
            _ => return None,
        };
        // Frozen, or no such queue: the write has no effect.
        let Some(queue) = queue.filter(|_| !frozen) else { return Some(()) };
        let high = u32::from(offset & 4 != 0);
        match (offset, field) {
            (reg::VIRTIO_MMIO_QUEUE_READY, _) => queue.ready = value == 1,
            (_, None) => queue.size = u16::try_from(value).unwrap_or(0),
            (_, Some(0)) => set_word(&mut queue.desc, high, value),
            (_, Some(1)) => set_word(&mut queue.avail, high, value),
            _ => set_word(&mut queue.used, high, value),
        }
        Some(())
    }
}

fn word(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_word(value: &mut u64, select: u32, word: u32) {
    let shift = 32 * select.min(1);
    *value = *value & !(0xffff_ffff << shift) | u64::from(word) << shift;
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
        if offset >= CONFIG {
            self.config.read(offset - CONFIG, data);
            return Ok(());
        }
        let data: &mut [u8; 4] = data.try_into().map_err(|_| BusError::BadAccess)?;
        let offset = u32::try_from(offset).map_err(|_| BusError::BadAccess)?;
        *data = self.read_register(offset).ok_or(BusError::BadAccess)?.to_le_bytes();
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), BusError> {
        if offset >= CONFIG {
            if let Slot::Running(worker) = &self.slot {
                worker.post().send_config_write(offset - CONFIG, data);
            } else if let Slot::Parked(runner) = &self.slot {
                runner.post().send_config_write(offset - CONFIG, data);
            }
            return Ok(());
        }
        let data: &[u8; 4] = data.try_into().map_err(|_| BusError::BadAccess)?;
        let offset = u32::try_from(offset).map_err(|_| BusError::BadAccess)?;
        self.write_register(offset, u32::from_le_bytes(*data)).ok_or(BusError::BadAccess)
    }
}
