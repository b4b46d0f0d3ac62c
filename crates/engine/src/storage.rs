//! Counted memory on a device, whatever it holds: the base of tensors, packed matrices and scalars.

use crate::device::Device;
use crate::meter::Purpose;
use crate::space::Place;

/// Bytes of a device that count as in use while this lives. What they mean is its owner's matter.
pub(crate) struct Storage {
    device: Device,
    purpose: Purpose,
    bytes: usize,
    place: Place,
}

impl Storage {
    /// Nominal `bytes` on a device, values unspecified. Where there is no room, unwinds with
    /// [`crate::OutOfAddressSpace`].
    pub(crate) fn new(device: &Device, bytes: usize, purpose: Purpose) -> Self {
        Storage {
            place: device.take(bytes, purpose),
            device: device.clone(),
            purpose,
            bytes,
        }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Nominal bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn place_mut(&mut self) -> &mut Place {
        &mut self.place
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.device.release(self.bytes, self.purpose);
    }
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of {}", self.bytes, self.purpose.name())
    }
}
