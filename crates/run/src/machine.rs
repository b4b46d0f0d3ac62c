//! The processor as `auto` sees it: which ways of storing and multiplying are fast and right on it,
//! by measurement. An instruction that a processor has says nothing about its speed.

mod cache;
mod sample;
mod timed;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lowrank_engine::{CacheContent, CpuCache, DType, Isa, Processor, processor};
use lowrank_formats::files::{Ceiling, read_text};
use lowrank_train::checkpoint::{Checkpoints, RunState};
use lowrank_train::config::NumericSettings;

use crate::error::{RunError, RunResult};
pub(crate) use sample::SampleProduct;
pub use timed::{Timed, WAYS, fastest};

/// How many times the kernels have changed so that their rates may be others. What was measured
/// with another number is measured anew.
const KERNEL_SET: u32 = 1;

/// How it is found out what `auto` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rates {
    /// By the name of the instruction set: bf16 where it multiplies pairs.
    ByName,
    /// By measurement, a few milliseconds; kept in a folder where one is given.
    Measured {
        /// The folder, which need not exist.
        cache: Option<PathBuf>,
    },
}

/// A processor with the instruction set to compute with.
#[derive(Clone, Debug)]
pub struct Machine {
    isa: Isa,
    rates: Rates,
    timed: OnceLock<Vec<Timed>>,
}

impl Default for Machine {
    /// The best instruction set, measured in each process that asks.
    fn default() -> Self {
        Self::new(Isa::best(), Rates::Measured { cache: None })
    }
}

impl Machine {
    /// With an instruction set that is available here.
    pub fn new(isa: Isa, rates: Rates) -> Self {
        Self {
            isa,
            rates,
            timed: OnceLock::new(),
        }
    }

    /// The instruction set to compute with.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The same machine with another of its instruction sets.
    pub fn with_isa(&self, isa: Isa) -> Self {
        Self::new(isa, self.rates.clone())
    }

    /// How values are stored and multiplied where nobody chooses. Nothing is measured where the
    /// instruction set has no products of pairs: it is f32 then.
    ///
    /// # Errors
    /// Even f32 gives wrong results here.
    pub fn preferred(&self) -> RunResult<NumericSettings> {
        if !self.isa.multiplies_bf16() {
            return Ok(NumericSettings::of(DType::F32));
        }
        match self.timed() {
            [] => Ok(NumericSettings::of(DType::Bf16)),
            timed => fastest(timed).ok_or_else(|| {
                let isa = self.isa.name();
                let message = format!("this processor's products with {isa} are wrong");
                RunError::failure(message).hint(
                    "lowrank inspect --machine shows by how much; LOWRANK_ISA=avx2 takes other instructions",
                )
            }),
        }
    }

    /// Every way as it was measured; none where rates go by name, or the system refuses the means.
    pub fn timed(&self) -> &[Timed] {
        self.timed.get_or_init(|| {
            let Rates::Measured { cache } = &self.rates else {
                return Vec::new();
            };
            let key = self.key();
            let file = cache.as_deref().map(|dir| cache::file(dir, &key));
            let cached = file.as_deref().and_then(|file| cache::read(file, &key));
            cached.unwrap_or_else(|| {
                let timed = timed::measure(self.isa).unwrap_or_default();
                if let Some(file) = file.filter(|_| !timed.is_empty()) {
                    cache::write(&file, &key, &timed);
                }
                timed
            })
        })
    }

    /// Where rates are kept.
    pub fn cache_file(&self) -> Option<PathBuf> {
        match &self.rates {
            Rates::ByName | Rates::Measured { cache: None } => None,
            Rates::Measured { cache: Some(dir) } => Some(cache::file(dir, &self.key())),
        }
    }

    /// What a user should know of what has been measured so far: ways that are left out.
    pub fn warnings(&self) -> Vec<String> {
        let timed = self.timed.get().map_or(&[][..], Vec::as_slice);
        let wrong = timed.iter().filter(|timed| !timed.is_right());
        let warning = |timed: &Timed| {
            let NumericSettings {
                base_format,
                arithmetic,
                ..
            } = timed.way;
            format!(
                "this processor multiplies {} weights in {} wrongly with {} (off by {:.2} of a result): `auto` leaves it out",
                base_format.name(),
                arithmetic.name(),
                self.isa.name(),
                timed.error
            )
        };
        wrong.map(warning).collect()
    }

    /// What rates depend on.
    fn key(&self) -> String {
        let Processor {
            name,
            identity,
            features,
            caches: _,
        } = processor();
        let identity = identity.or_else(system_identity).unwrap_or_default();
        let (isa, features) = (self.isa.name(), features.join(" "));
        let build = match cfg!(debug_assertions) {
            true => "debug",
            false => "release",
        };
        let version = env!("CARGO_PKG_VERSION");
        format!(
            "{name}; {identity}; {features}; {isa}; lowrank {version} {build}, kernels {KERNEL_SET}"
        )
    }
}

/// The instruction set for a run that goes on: the one that it was computed with until its newest
/// checkpoint, so that its bits are kept. `forced` is one that a user insists on. A run without a
/// checkpoint, or of a version that did not note it, takes the `best`.
///
/// # Errors
/// The processor lacks the run's own, and the user does not insist on another.
pub fn isa_to_resume(run: &Path, forced: Option<Isa>, best: Isa) -> RunResult<Isa> {
    let checkpoints = Checkpoints::new(run, 1);
    let newest = checkpoints
        .steps()
        .ok()
        .and_then(|steps| steps.last().copied());
    // A checkpoint that cannot be read is told of when the run goes on from an older one.
    let state = newest.and_then(|step| RunState::read(&checkpoints.path_of(step)).ok());
    let noted = state.and_then(|state| state.instructions);
    isa_after(noted.as_deref(), forced, best).map_err(|error| error.about(run))
}

fn isa_after(noted: Option<&str>, forced: Option<Isa>, best: Isa) -> RunResult<Isa> {
    let (None, Some(name)) = (forced, noted) else {
        return Ok(forced.unwrap_or(best));
    };
    let here = Isa::from_name(name).filter(|isa| isa.is_available());
    here.ok_or_else(|| {
        RunError::failure(format!(
            "the run was computed with {name}, which this processor lacks: it cannot go on with the same bits"
        ))
        .hint(format!(
            "resume it on a processor with {name}; LOWRANK_ISA={} goes on with other bits from here",
            best.name()
        ))
    })
}

/// What the system says of a processor that does not tell itself: the parts of `/proc/cpuinfo` that
/// say which it is, of all cores, each but once.
fn system_identity() -> Option<String> {
    let text = read_text(Path::new("/proc/cpuinfo"), Ceiling::SETTINGS).ok()?;
    Some(parts_of_cpuinfo(&text))
}

fn parts_of_cpuinfo(text: &str) -> String {
    let wanted = ["CPU implementer", "CPU variant", "CPU part", "CPU revision"];
    let mut parts = Vec::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let part = format!("{} {}", name.trim(), value.trim());
        if wanted.contains(&name.trim()) && !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts.join(", ")
}

/// The caches of a core: as the processor tells them, or as the system does.
pub fn cpu_caches() -> Vec<CpuCache> {
    let told = processor().caches;
    if !told.is_empty() {
        return told;
    }
    let cache = |index: usize| {
        let field = |name: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{name}");
            let text = read_text(Path::new(&path), Ceiling::NAME).ok()?;
            Some(text.trim().to_owned())
        };
        Some(CpuCache {
            level: field("level")?.parse().ok()?,
            holds: match field("type")?.as_str() {
                "Data" => CacheContent::Data,
                "Instruction" => CacheContent::Instructions,
                _ => CacheContent::Unified,
            },
            bytes: bytes_of_kib(&field("size")?)?,
        })
    };
    (0..16).map_while(cache).collect()
}

/// `48K`, as the system says it.
fn bytes_of_kib(text: &str) -> Option<u64> {
    let kib: u64 = text.strip_suffix('K')?.parse().ok()?;
    kib.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowrank_engine::{Arithmetic, BaseFormat};

    #[test]
    fn a_processor_without_pairs_computes_in_f32_and_by_name_pairs_are_taken_where_they_are() {
        let f32 = NumericSettings::of(DType::F32);
        for isa in [Isa::Scalar, Isa::Avx2, Isa::Neon] {
            let machine = Machine::new(isa, Rates::Measured { cache: None });
            assert_eq!(machine.preferred().unwrap(), f32);
            assert!(machine.timed.get().is_none(), "nothing is measured");
        }
        let machine = Machine::new(Isa::Avx512Bf16, Rates::ByName);
        assert_eq!(
            machine.preferred().unwrap(),
            NumericSettings::of(DType::Bf16)
        );
        assert!(machine.cache_file().is_none() && machine.warnings().is_empty());
    }

    #[test]
    fn rates_are_measured_once_and_read_by_those_that_come_after() {
        let dir = tempfile::tempdir().unwrap();
        let rates = Rates::Measured {
            cache: Some(dir.path().join("lowrank")),
        };
        let machine = Machine::new(Isa::Scalar, rates);
        let first = machine.timed().to_vec();
        let file = machine.cache_file().unwrap();
        assert!(file.is_file());
        let again = machine.with_isa(Isa::Scalar);
        assert_eq!(again.timed(), first);
        // What is broken is replaced.
        std::fs::write(&file, "{").unwrap();
        let anew = machine.with_isa(Isa::Scalar);
        assert_eq!(anew.timed().len(), first.len());
        assert_eq!(machine.with_isa(Isa::Scalar).timed(), anew.timed());
    }

    #[test]
    fn what_is_wrong_is_left_out_and_told() {
        let machine = Machine::new(Isa::Avx512Bf16, Rates::ByName);
        let timed = |way: NumericSettings, error: f64| Timed {
            way,
            flops_per_second: 1e11,
            error,
        };
        let all = vec![
            timed(WAYS[0], 0.01),
            timed(WAYS[1], 1.5),
            timed(WAYS[2], 0.0),
        ];
        machine.timed.set(all).unwrap();
        let preferred = machine.preferred().unwrap();
        let wanted =
            NumericSettings::new(DType::Bf16, Some(BaseFormat::Bf16), Some(Arithmetic::F32));
        assert_eq!(preferred, wanted);
        let [warning] = &machine.warnings()[..] else {
            panic!("one is wrong")
        };
        assert!(warning.contains("bf16 weights in bf16 wrongly with avx512_bf16 (off by 1.50"));
        let broken = Machine::new(Isa::Avx512Bf16, Rates::ByName);
        let all = WAYS.map(|way| timed(way, 2.0)).into();
        broken.timed.set(all).unwrap();
        let error = broken.preferred().unwrap_err().to_json().to_string();
        assert!(error.contains("LOWRANK_ISA=avx2"), "{error}");
    }

    #[test]
    fn a_run_goes_on_with_its_own_instructions_or_is_refused_with_a_hint() {
        let best = Isa::best();
        let after = |noted, forced| isa_after(noted, forced, best);
        assert_eq!(after(None, None).unwrap(), best);
        assert_eq!(after(Some("scalar"), None).unwrap(), Isa::Scalar);
        assert_eq!(after(Some("scalar"), Some(best)).unwrap(), best);
        for lacking in ["amx", "neon avx2"] {
            assert_eq!(after(Some(lacking), Some(best)).unwrap(), best);
            let error = after(Some(lacking), None)
                .unwrap_err()
                .to_json()
                .to_string();
            let hint = format!("LOWRANK_ISA={}", best.name());
            assert!(error.contains(lacking) && error.contains(&hint), "{error}");
        }
    }

    #[test]
    fn the_parts_of_each_core_stand_once() {
        let core = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n";
        let big = "processor\t: 4\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\nFeatures\t: fp\n";
        assert_eq!(
            parts_of_cpuinfo(&[core, core, big, "nonsense"].join("\n")),
            "CPU implementer 0x41, CPU part 0xd40, CPU part 0xd0c"
        );
        assert_eq!(parts_of_cpuinfo(""), "");
        let sizes = ["48K", "32768K", "K", "-1K", "48", "99999999999999999K"];
        let [small, large, others @ ..] = sizes.map(bytes_of_kib);
        assert_eq!([small, large], [Some(48 << 10), Some(32 << 20)]);
        assert_eq!(others, [None; 4]);
    }
}
