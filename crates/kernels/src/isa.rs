//! The instruction sets that the kernels are written for, and which of them this machine has.

/// An instruction set. A value that the machine lacks may be named, but every kernel panics when
/// told to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust, one lane; available everywhere.
    Scalar,
    /// aarch64 NEON, four lanes.
    Neon,
    /// x86-64 AVX2 with FMA and F16C, eight lanes.
    Avx2,
    /// x86-64 AVX-512 F, BW, DQ and VL, sixteen lanes.
    Avx512,
    /// The same with AVX-512 BF16: products of bf16 pairs at twice the rate of f32.
    Avx512Bf16,
}

impl Isa {
    const ALL: [Isa; 5] = [
        Isa::Scalar,
        Isa::Neon,
        Isa::Avx2,
        Isa::Avx512,
        Isa::Avx512Bf16,
    ];

    /// The widest instruction set that this machine has.
    pub fn best() -> Isa {
        Isa::ALL
            .into_iter()
            .rev()
            .find(|isa| isa.is_available())
            .unwrap_or(Isa::Scalar)
    }

    /// Every instruction set that this machine has, narrowest first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// The lower-case name, as [`Isa::from_name`] reads it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512_bf16",
        }
    }

    /// The instruction set of a name, or `None` if there is none of that name.
    pub fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Whether products of bf16 values are faster than those of f32 values.
    pub fn multiplies_bf16(self) -> bool {
        match self {
            Isa::Scalar | Isa::Neon | Isa::Avx2 | Isa::Avx512 => false,
            Isa::Avx512Bf16 => true,
        }
    }

    /// Whether this machine has the instruction set.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            Isa::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && Isa::Avx2.is_available()
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => is_x86_feature_detected!("avx512bf16") && Isa::Avx512.is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for isa in Isa::ALL {
            assert_eq!(Isa::from_name(isa.name()), Some(isa));
        }
        assert_eq!(Isa::from_name("avx"), None);
    }

    #[test]
    fn the_best_is_available() {
        assert!(Isa::best().is_available() && Isa::Scalar.is_available());
        assert_eq!(Isa::available().last(), Some(&Isa::best()));
    }
}
