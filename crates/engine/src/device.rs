//! Where tensors live and ops run. `cpu` computes; `dry` runs the same code with shapes only. Both count with the same
//! meter, which is why a plan and a run agree. Work is a closure over host slices: a device with memory of its own needs
//! another seam than [`Device::exec`].

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use lowrank_kernels::{DType, Isa};

use crate::buffer::{Buffer, Layout, Space};
use crate::meter::{MemoryReport, Meter, Purpose};
use crate::profile::{Phase, Profile};

/// What a device unwinds with where tensors do not fit into its address space. A plan tells before it: see
/// [`Device::reserved_bytes`] of a dry device and [`Device::address_space_bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfAddressSpace {
    /// Bytes of the tensor that found no place.
    pub asked: u64,
    /// Bytes of tensors, that one included.
    pub in_use: u64,
    /// Bytes of the address space.
    pub limit: u64,
}

impl std::fmt::Display for OutOfAddressSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            asked,
            in_use,
            limit,
        } = self;
        write!(
            f,
            "out of address space: a tensor of {asked} bytes makes {in_use} in use, of {limit}"
        )
    }
}

impl std::error::Error for OutOfAddressSpace {}

/// A handle to a device; clones share it.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    kind: Kind,
    precision: DType,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    meter: Meter,
    layout: Layout,
    profile: Option<Profile>,
}

enum Kind {
    Cpu {
        isa: Isa,
        threads: rayon::ThreadPool,
        space: Space,
    },
    Dry,
}

impl Device {
    /// [`Device::cpu_in`] in f32, the reference.
    pub fn cpu(isa: Isa, threads: usize) -> Result<Self, std::io::Error> {
        Self::cpu_in(DType::F32, isa, threads)
    }

    /// The processor. Frozen weights and activations are stored in `precision`, and products take operands of it; sums,
    /// norms, softmax, losses and everything trained are f32 in either. `isa` must be available here (see [`Isa::is_available`]); `threads` 0 means one per core.
    /// Panics if `isa` is not available; errors if threads or address space cannot be had.
    pub fn cpu_in(precision: DType, isa: Isa, threads: usize) -> Result<Self, std::io::Error> {
        assert!(isa.is_available(), "this processor has no {}", isa.name());
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("lowrank-{i}"))
            .build()
            .map_err(std::io::Error::other)?;
        let kind = Kind::Cpu {
            isa,
            threads,
            space: Space::reserve()?,
        };
        Ok(Device(Arc::new(Inner {
            kind,
            precision,
            counts: Mutex::default(),
        })))
    }

    /// [`Device::dry_in`] in f32.
    pub fn dry() -> Self {
        Self::dry_in(DType::F32)
    }

    /// Shapes only: allocates nothing, computes nothing, counts everything, as a device of this precision would.
    pub fn dry_in(precision: DType) -> Self {
        Device(Arc::new(Inner {
            kind: Kind::Dry,
            precision,
            counts: Mutex::default(),
        }))
    }

    /// How frozen weights and activations are stored.
    pub fn precision(&self) -> DType {
        self.0.precision
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

    /// Counts `flops` and, on a device that computes, runs `work`. `op` is what a profile calls it.
    pub fn exec(&self, op: &'static str, flops: u64, work: impl FnOnce(Isa)) {
        let profiling = {
            let mut counts = self.counts();
            counts.meter.add_flops(flops);
            counts.profile.is_some()
        };
        let Kind::Cpu { isa, .. } = &self.0.kind else {
            return;
        };
        if !profiling {
            return work(*isa);
        }
        let started = Instant::now();
        work(*isa);
        let elapsed = started.elapsed();
        if let Some(profile) = &mut self.counts().profile {
            profile.add(op, elapsed, flops);
        }
    }

    /// From now on the time of each op is taken; what was taken before is forgotten.
    pub fn start_profile(&self) {
        self.counts().profile = Some(Profile::default());
    }

    /// The times taken since [`Device::start_profile`], and an end to taking them. None if it was never called.
    pub fn end_profile(&self) -> Option<Profile> {
        self.counts().profile.take()
    }

    /// Says which half of a pass the ops that follow belong to.
    pub(crate) fn enter(&self, phase: Phase) {
        if let Some(profile) = &mut self.counts().profile {
            profile.enter(phase);
        }
    }

    /// Bytes in use now, by purpose.
    pub fn memory(&self) -> MemoryReport {
        self.counts().meter.now()
    }

    /// Bytes in use, by purpose, at the moment of the largest total since the start or the last [`Device::reset_peak`].
    pub fn peak_memory(&self) -> MemoryReport {
        self.counts().meter.peak()
    }

    /// Starts a new peak from what is in use now.
    pub fn reset_peak(&self) {
        self.counts().meter.reset_peak();
    }

    /// Floating-point operations asked for so far (a multiply-add is two).
    pub fn flops(&self) -> u64 {
        self.counts().meter.flops()
    }

    /// Bytes from the first to the last that tensors have occupied so far: the memory in use at the peak, and the holes
    /// between. On a device that computes, this is what they keep resident.
    pub fn reserved_bytes(&self) -> u64 {
        self.counts().layout.highest_top() as u64
    }

    /// Bytes of address space for tensors; nothing on the dry device, which lays out none.
    pub fn address_space_bytes(&self) -> Option<u64> {
        match &self.0.kind {
            Kind::Cpu { space, .. } => Some(space.len() as u64),
            Kind::Dry => None,
        }
    }

    /// A place for `bytes`, and on a device that computes the values there. Where there is none, unwinds with
    /// [`OutOfAddressSpace`].
    pub(crate) fn take(&self, bytes: usize, purpose: Purpose) -> (Range<usize>, Option<Buffer>) {
        let block = {
            let mut counts = self.counts();
            counts.meter.allocate(purpose, bytes as u64);
            counts.layout.take(bytes)
        };
        match &self.0.kind {
            Kind::Cpu { space, .. } => {
                let Some(buffer) = space.buffer(&block) else {
                    let error = OutOfAddressSpace {
                        asked: bytes as u64,
                        in_use: self.memory().total(),
                        limit: space.len() as u64,
                    };
                    // A pass has no way to fail between two ops, so whoever began it is told. Nothing is printed here.
                    std::panic::resume_unwind(Box::new(error));
                };
                (block, Some(buffer))
            }
            Kind::Dry => (block, None),
        }
    }

    pub(crate) fn give(&self, block: Range<usize>, bytes: usize, purpose: Purpose) {
        let mut counts = self.counts();
        counts.meter.release(purpose, bytes as u64);
        counts.layout.give(block);
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.counts.lock().expect("no panic holds this lock")
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0.kind {
            Kind::Cpu { isa, threads, .. } => {
                write!(
                    f,
                    "Device::cpu({}, {} threads)",
                    isa.name(),
                    threads.current_num_threads()
                )
            }
            Kind::Dry => write!(f, "Device::dry"),
        }
    }
}
