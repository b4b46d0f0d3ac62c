//! Where tensors live and ops run. `cpu` computes; `dry` runs the same code with shapes only. Both count with the same
//! meter, which is why a plan and a run agree. A further device (an accelerator) adds a kind here and an arm in each op.

use std::sync::{Arc, Mutex};

use lowrank_kernels::Isa;

use crate::buffer::{Buffer, Pool};
use crate::meter::{MemoryReport, Meter, Purpose};

/// A handle to a device; clones share it.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    kind: Kind,
    meter: Mutex<Meter>,
}

enum Kind {
    Cpu { isa: Isa, threads: rayon::ThreadPool, pool: Mutex<Pool> },
    Dry,
}

impl Device {
    /// The processor. `isa` must be available here (see [`Isa::is_available`]); `threads` 0 means one per core.
    /// Panics if `isa` is not available; errors if the threads cannot be started.
    pub fn cpu(isa: Isa, threads: usize) -> Result<Self, std::io::Error> {
        assert!(isa.is_available(), "this processor has no {}", isa.name());
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("lowrank-{i}"))
            .build()
            .map_err(std::io::Error::other)?;
        let kind = Kind::Cpu { isa, threads, pool: Mutex::new(Pool::default()) };
        Ok(Device(Arc::new(Inner { kind, meter: Mutex::default() })))
    }

    /// Shapes only: allocates nothing, computes nothing, counts everything.
    pub fn dry() -> Self {
        Device(Arc::new(Inner { kind: Kind::Dry, meter: Mutex::default() }))
    }

    /// Whether this device computes nothing.
    pub fn is_dry(&self) -> bool {
        matches!(self.0.kind, Kind::Dry)
    }

    /// The instruction set in use; the dry device names the scalar one.
    pub fn isa(&self) -> Isa {
        match &self.0.kind {
            Kind::Cpu { isa, .. } => *isa,
            Kind::Dry => Isa::Scalar,
        }
    }

    /// Number of threads that compute.
    pub fn threads(&self) -> usize {
        match &self.0.kind {
            Kind::Cpu { threads, .. } => threads.current_num_threads(),
            Kind::Dry => 0,
        }
    }

    /// Runs `work` on this device's threads. A forward or backward pass is wrapped in one such call.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.0.kind {
            Kind::Cpu { threads, .. } => threads.install(work),
            Kind::Dry => work(),
        }
    }

    /// Counts `flops` and, on a device that computes, runs `work`.
    pub fn exec(&self, flops: u64, work: impl FnOnce(Isa)) {
        if flops > 0 {
            self.meter().add_flops(flops);
        }
        match &self.0.kind {
            Kind::Cpu { isa, .. } => work(*isa),
            Kind::Dry => {}
        }
    }

    /// Bytes in use now, by purpose.
    pub fn memory(&self) -> MemoryReport {
        self.meter().now()
    }

    /// Bytes in use, by purpose, at the moment of the largest total since the start or the last [`Device::reset_peak`].
    pub fn peak_memory(&self) -> MemoryReport {
        self.meter().peak()
    }

    /// Starts a new peak from what is in use now.
    pub fn reset_peak(&self) {
        self.meter().reset_peak();
    }

    /// Floating-point operations asked for so far (a multiply-add is two).
    pub fn flops(&self) -> u64 {
        self.meter().flops()
    }

    /// Bytes held from the system for tensors, in use or kept for reuse; 0 on the dry device.
    pub fn held_bytes(&self) -> u64 {
        match &self.0.kind {
            Kind::Cpu { pool, .. } => pool.lock().expect("no panic holds this lock").held_bytes() as u64,
            Kind::Dry => 0,
        }
    }

    /// Hands buffers that nothing uses back to the system.
    pub fn trim(&self) {
        if let Kind::Cpu { pool, .. } = &self.0.kind {
            pool.lock().expect("no panic holds this lock").trim();
        }
    }

    pub(crate) fn take(&self, len: usize, purpose: Purpose) -> Option<Buffer> {
        self.meter().allocate(purpose, 4 * len as u64);
        match &self.0.kind {
            Kind::Cpu { pool, .. } => Some(pool.lock().expect("no panic holds this lock").take(len)),
            Kind::Dry => None,
        }
    }

    pub(crate) fn give(&self, buffer: Option<Buffer>, len: usize, purpose: Purpose) {
        self.meter().release(purpose, 4 * len as u64);
        if let (Kind::Cpu { pool, .. }, Some(buffer)) = (&self.0.kind, buffer) {
            pool.lock().expect("no panic holds this lock").give(buffer);
        }
    }

    fn meter(&self) -> std::sync::MutexGuard<'_, Meter> {
        self.0.meter.lock().expect("no panic holds this lock")
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0.kind {
            Kind::Cpu { isa, threads, .. } => {
                write!(f, "Device::cpu({}, {} threads)", isa.name(), threads.current_num_threads())
            }
            Kind::Dry => write!(f, "Device::dry"),
        }
    }
}
