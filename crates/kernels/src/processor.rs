//! What this processor calls itself, and which of the instructions that matter here it has. Asked
//! of the processor alone, so that it is the same in every process of a machine.

/// A processor, as it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Its name; empty where it tells none.
    pub name: String,
    /// Vendor, family, model and stepping; nothing where only the system knows them.
    pub identity: Option<String>,
    /// The instructions that kernels could use, by the names that systems give them.
    pub features: Vec<&'static str>,
    /// The caches of a core, as the processor tells them; nothing where only the system knows them.
    pub caches: Vec<CpuCache>,
}

/// A cache of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuCache {
    /// 1 is nearest.
    pub level: u32,
    /// What it holds.
    pub holds: CacheContent,
    /// Its size.
    pub bytes: u64,
}

/// What a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheContent {
    /// Values.
    Data,
    /// Instructions.
    Instructions,
    /// Both.
    Unified,
}

impl CacheContent {
    /// A name for tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            CacheContent::Data => "data",
            CacheContent::Instructions => "instructions",
            CacheContent::Unified => "unified",
        }
    }
}

/// The processor that this runs on.
pub fn processor() -> Processor {
    #[cfg(target_arch = "x86_64")]
    {
        x86::processor()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Processor {
            name: String::new(),
            identity: None,
            features: arm_features(),
            caches: Vec::new(),
        }
    }
}

#[cfg(target_arch = "aarch64")]
fn arm_features() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected as has;
    let found = [
        ("neon", true),
        ("dotprod", has!("dotprod")),
        ("fp16", has!("fp16")),
        ("bf16", has!("bf16")),
        ("i8mm", has!("i8mm")),
        ("sve", has!("sve")),
        ("sve2", has!("sve2")),
    ];
    names(&found)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn arm_features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn names(found: &[(&'static str, bool)]) -> Vec<&'static str> {
    let has = found.iter().filter(|(_, has)| *has);
    has.map(|(name, _)| *name).collect()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::is_x86_feature_detected as has;
    use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

    use super::{CacheContent, CpuCache, Processor, names};

    /// The leaf of basic features, and the first of extended ones.
    const FEATURES: u32 = 7;
    const EXTENDED: u32 = 0x8000_0000;

    pub(super) fn processor() -> Processor {
        let most = __cpuid(0);
        let vendor = text(&[most.ebx, most.edx, most.ecx]);
        let signature = __cpuid(1).eax;
        let extended = match most.eax {
            FEATURES.. => __cpuid_count(FEATURES, 0).edx,
            _ => 0,
        };
        let bit = |at: u32| extended >> at & 1 == 1;
        let features = names(&[
            ("avx2", has!("avx2")),
            ("fma", has!("fma")),
            ("f16c", has!("f16c")),
            ("avx_vnni", has!("avxvnni")),
            ("avx512f", has!("avx512f")),
            ("avx512bw", has!("avx512bw")),
            ("avx512dq", has!("avx512dq")),
            ("avx512vl", has!("avx512vl")),
            ("avx512_vnni", has!("avx512vnni")),
            ("avx512_bf16", has!("avx512bf16")),
            ("avx512_fp16", has!("avx512fp16")),
            ("amx_bf16", bit(22)),
            ("amx_tile", bit(24)),
            ("amx_int8", bit(25)),
        ]);
        Processor {
            name: brand(),
            identity: Some(format!("{vendor} {signature:08x}")),
            features,
            caches: caches(&vendor, most.eax),
        }
    }

    /// The caches of this core: a leaf that AMD has at one place, Intel at another.
    fn caches(vendor: &str, most: u32) -> Vec<CpuCache> {
        const INTEL: u32 = 4;
        const AMD: u32 = EXTENDED + 0x1d;
        let leaf = match vendor {
            "AuthenticAMD" | "HygonGenuine" if __cpuid(EXTENDED).eax >= AMD => AMD,
            "GenuineIntel" if most >= INTEL => INTEL,
            _ => return Vec::new(),
        };
        let cache = |index: u32| {
            let CpuidResult { eax, ebx, ecx, .. } = __cpuid_count(leaf, index);
            let holds = match eax & 0x1f {
                1 => CacheContent::Data,
                2 => CacheContent::Instructions,
                3 => CacheContent::Unified,
                _ => return None,
            };
            let field = |at: u32, bits: u32| u64::from(ebx >> at & ((1 << bits) - 1)) + 1;
            Some(CpuCache {
                level: eax >> 5 & 7,
                holds,
                bytes: field(22, 10) * field(12, 10) * field(0, 12) * (u64::from(ecx) + 1),
            })
        };
        (0..8).map_while(cache).collect()
    }

    /// The name, out of three leaves of 16 bytes.
    fn brand() -> String {
        const FIRST: u32 = EXTENDED + 2;
        if __cpuid(EXTENDED).eax < FIRST + 2 {
            return String::new();
        }
        let words = (FIRST..FIRST + 3).flat_map(|leaf| {
            let CpuidResult { eax, ebx, ecx, edx } = __cpuid(leaf);
            [eax, ebx, ecx, edx]
        });
        text(&words.collect::<Vec<_>>())
    }

    /// Bytes of ASCII up to the first zero.
    fn text(words: &[u32]) -> String {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        let letters = bytes.take_while(|byte| *byte != 0);
        let text: String = letters
            .map(|byte| match byte {
                b' '..=b'~' => char::from(byte),
                _ => '?',
            })
            .collect();
        text.trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn a_processor_tells_the_same_twice_and_has_what_its_instruction_set_needs() {
        let found = processor();
        assert_eq!(found, processor());
        let has = |name: &str| found.features.contains(&name);
        assert_eq!(
            Isa::Avx512Bf16.is_available(),
            has("avx512_bf16") && Isa::Avx512.is_available()
        );
        assert!(!Isa::Avx2.is_available() || (has("avx2") && has("fma")));
        if cfg!(target_arch = "x86_64") {
            let identity = found.identity.expect("x86 tells who it is");
            assert!(identity.len() > 9 && identity.is_ascii(), "{identity}");
            for cache in found.caches {
                assert!((1..=4).contains(&cache.level), "{cache:?}");
                assert!((4 << 10..1 << 32).contains(&cache.bytes), "{cache:?}");
            }
        }
    }
}
