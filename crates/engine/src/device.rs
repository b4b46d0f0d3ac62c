//! Where tensors live and calls run. A device counts memory, layout, operations and time, and has a
//! backend that does the rest. Both a device that computes and one that only plans count with the
//! same code, which is why a plan is the run.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lowrank_kernels::{DType, Isa, record_tasks};

use crate::backend::{Backend, Cpu, CpuSizes, Dry, Reference};
use crate::call::Call;
use crate::host::Host;
use crate::meter::{MemoryReport, Meter, Purpose};
use crate::numerics::Numerics;
use crate::observed::Observed;
use crate::profile::{Phase, Profile};
use crate::space::Place;
use crate::storage::Storage;

/// What a device unwinds with where tensors do not fit into its address space. A plan tells before
/// it: see [`Device::reserved_bytes`] of a dry device and [`Device::address_space_bytes`].
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
    backend: Box<dyn Backend>,
    numerics: Numerics,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    meter: Meter,
    profile: Option<Profile>,
    observed: Option<Observed>,
}

impl Device {
    /// A device of any backend. A type in the place of numerics is that of all values.
    pub fn new(backend: impl Backend + 'static, numerics: impl Into<Numerics>) -> Self {
        Device(Arc::new(Inner {
            backend: Box::new(backend),
            numerics: numerics.into(),
            counts: Mutex::default(),
        }))
    }

    /// [`Device::cpu_in`] in f32.
    pub fn cpu(isa: Isa, threads: usize) -> Result<Self, std::io::Error> {
        Self::cpu_in(DType::F32, isa, threads)
    }

    /// The processor. `isa` must be available here (see [`Isa::is_available`]); `threads` 0 means
    /// one per core. Panics if `isa` is not available; errors if threads or address space cannot be
    /// had.
    pub fn cpu_in(
        numerics: impl Into<Numerics>,
        isa: Isa,
        threads: usize,
    ) -> Result<Self, std::io::Error> {
        Ok(Self::new(Cpu::new(isa, threads)?, numerics))
    }

    /// The definition of every call, in f64 and on one thread: slow, to compare others with.
    ///
    /// # Errors
    /// Address space cannot be had.
    pub fn reference() -> Result<Self, std::io::Error> {
        Self::reference_in(DType::F32)
    }

    /// As [`Device::reference`]; of the numerics only integers mean anything to it: those that
    /// weights and the other operand of a product become.
    ///
    /// # Errors
    /// Address space cannot be had.
    pub fn reference_in(numerics: impl Into<Numerics>) -> Result<Self, std::io::Error> {
        Ok(Self::new(Reference::new()?, numerics))
    }

    /// [`Device::dry_in`] in f32.
    pub fn dry() -> Self {
        Self::dry_in(DType::F32)
    }

    /// Shapes only: computes nothing, counts everything, as this machine's processor would with all
    /// its cores.
    pub fn dry_in(numerics: impl Into<Numerics>) -> Self {
        Self::dry_cpu(numerics, Isa::best(), 0)
    }

    /// Shapes only, counted as [`Device::cpu_in`] would.
    pub fn dry_cpu(numerics: impl Into<Numerics>, isa: Isa, threads: usize) -> Self {
        Self::new(Dry::new(Arc::new(CpuSizes::new(isa, threads))), numerics)
    }

    /// As [`Device::dry_in`], planning for another device.
    pub fn dry_like(device: &Device) -> Self {
        Self::new(Dry::new(device.backend().sizes()), device.numerics())
    }

    /// How values are stored and multiplied.
    pub fn numerics(&self) -> Numerics {
        self.0.numerics
    }

    /// Whether this device computes nothing.
    pub fn is_dry(&self) -> bool {
        !self.backend().computes()
    }

    /// What computes, as it is called in tables and records: `avx512_bf16`, for example.
    pub fn name(&self) -> &'static str {
        self.backend().name()
    }

    /// Number of threads that compute, or that are planned for.
    pub fn threads(&self) -> usize {
        self.backend().sizes().threads()
    }

    /// Arithmetic on host slices, with this device's instructions where it is the processor.
    pub fn host(&self) -> Host {
        self.backend().host()
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.0.backend
    }

    /// Columns with which a gradient against `depth` rows of a weight is stored, the last ones
    /// zeros, so that its product with the weight runs fast.
    pub(crate) fn padded_depth(&self, depth: usize) -> usize {
        let sizes = self.backend().sizes();
        depth.next_multiple_of(sizes.depth_multiple(self.numerics().arithmetic))
    }

    /// Runs `work` where this device's calls cost least, on its threads. A forward or backward pass
    /// is wrapped in one such call.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let (mut work, mut result) = (Some(work), None);
        self.backend().install(&mut || {
            result = work.take().map(|work| work());
        });
        result.expect("a backend runs what it is given, once")
    }

    /// Counts a call and has the backend run it. Panics where a shape does not fit or, on a device
    /// that computes, a tensor lives on another device.
    pub fn run(&self, call: Call<'_>) {
        call.check();
        let (op, flops) = (call.name(), call.flops());
        let scratch_bytes = self.backend().sizes().scratch_bytes(&call);
        let (is_profiling, wants_tasks, is_observing) = {
            let mut counts = self.counts();
            counts.meter.add_flops(flops);
            let profile = counts.profile.as_ref();
            let wants_tasks = profile.is_some_and(Profile::wants_tasks);
            (profile.is_some(), wants_tasks, counts.observed.is_some())
        };
        let mut scratch =
            (scratch_bytes > 0).then(|| Storage::new(self, scratch_bytes, Purpose::Workspace));
        if self.is_dry() {
            return;
        }
        call.for_each_storage(&mut |storage| {
            let is_own = Arc::ptr_eq(&storage.device().0, &self.0);
            assert!(is_own, "{op}: a tensor lives on another device");
        });
        if is_observing
            && let Call::Product(product) = &call
            && let Some(observed) = &mut self.counts().observed
        {
            observed.look(self.backend(), product);
        }
        let scratch = scratch.as_mut().map(|scratch| scratch.place_mut());
        let started = is_profiling.then(Instant::now);
        let run = || self.backend().run(call, scratch.into());
        let groups = match wants_tasks {
            true => record_tasks(run).1,
            false => {
                run();
                Vec::new()
            }
        };
        if let Some(started) = started {
            let time = started.elapsed();
            self.add_time(op, time, flops);
            if wants_tasks && let Some(profile) = &mut self.counts().profile {
                profile.add_tasks(op, time, groups);
            }
        }
    }

    /// What `work` on the host gives; a profile shows it as an op. On the dry device it does not
    /// run.
    pub fn run_on_host<R>(&self, op: &'static str, work: impl FnOnce() -> R) -> Option<R> {
        if self.is_dry() {
            return None;
        }
        let started = Instant::now();
        let result = work();
        self.add_time(op, started.elapsed(), 0);
        Some(result)
    }

    fn add_time(&self, op: &'static str, time: Duration, flops: u64) {
        if let Some(profile) = &mut self.counts().profile {
            profile.add(op, time, flops);
        }
    }

    /// From now on the time of each op is taken; what was taken before is forgotten.
    pub fn start_profile(&self) {
        self.counts().profile = Some(Profile::default());
    }

    /// The same with the tasks of each call, as one thread does them that runs all of the work: one
    /// of [`Cpu::one_for_many`], inside [`Device::install`].
    pub fn start_task_profile(&self) {
        self.counts().profile = Some(Profile::with_tasks());
    }

    /// The times taken since [`Device::start_profile`], and an end to taking them. None if it was
    /// never called.
    pub fn end_profile(&self) -> Option<Profile> {
        self.counts().profile.take()
    }

    /// From now on the operands of products with integers are looked at, so that those that come
    /// after can keep their largest columns beside: see [`crate::PackedMatrix::take_observed`].
    pub fn start_observing(&self) {
        self.counts().observed = Some(Observed::default());
    }

    /// What was seen since [`Device::start_observing`].
    pub fn end_observing(&self) -> Observed {
        self.counts().observed.take().unwrap_or_default()
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

    /// Bytes in use, by purpose, at the moment of the largest total since the start or the last
    /// [`Device::reset_peak`].
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

    /// Bytes from the first to the last that tensors have occupied so far: the memory in use at the
    /// peak, and the holes between. On a device that computes, this is what they keep resident.
    pub fn reserved_bytes(&self) -> u64 {
        self.backend().space().highest_top() as u64
    }

    /// Bytes of address space for tensors; nothing on the dry device, which has no end.
    pub fn address_space_bytes(&self) -> Option<u64> {
        self.backend().space().len().map(|len| len as u64)
    }

    /// A place for `bytes`. Where there is none, unwinds with [`OutOfAddressSpace`].
    pub(crate) fn take(&self, bytes: usize, purpose: Purpose) -> Place {
        self.counts().meter.allocate(purpose, bytes as u64);
        let space = self.backend().space();
        space.take(bytes).unwrap_or_else(|| {
            let error = OutOfAddressSpace {
                asked: bytes as u64,
                in_use: self.memory().total(),
                limit: space.len().unwrap_or(usize::MAX) as u64,
            };
            // A pass has no way to fail between two ops, so whoever began it is told. Nothing is
            // printed here.
            std::panic::resume_unwind(Box::new(error))
        })
    }

    pub(crate) fn release(&self, bytes: usize, purpose: Purpose) {
        self.counts().meter.release(purpose, bytes as u64);
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.counts.lock().expect("no panic holds this lock")
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let threads = self.threads();
        write!(f, "Device({}, {threads} threads)", self.name())
    }
}
