//! The processor that a run computes on: instruction set, threads, and how weights and activations
//! are stored and multiplied.

use std::path::Path;

use lowrank_engine::backend::Cpu;
use lowrank_engine::{Arithmetic, BaseFormat, DType, Device, Isa};
use lowrank_formats::gguf::is_gguf;
use lowrank_train::config::{LARGEST_THREADS, Method, NumericSettings};
use serde::de::{DeserializeOwned, Error as _, IntoDeserializer, value};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::adapter::{base_format_of, base_model_of};
use crate::error::{RunError, RunResult};
use crate::machine::Machine;

/// A setting that may be left to the processor and the other settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice<T> {
    /// `auto`.
    Auto,
    /// This one.
    Is(T),
}

impl<T: Serialize> Serialize for Choice<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Choice::Auto => to.serialize_str("auto"),
            Choice::Is(value) => value.serialize(to),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Choice<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        if name == "auto" {
            return Ok(Choice::Auto);
        }
        let value: Result<T, value::Error> = T::deserialize(name.as_str().into_deserializer());
        let value = value.map_err(|error| D::Error::custom(format!("{error}, or `auto`")))?;
        Ok(Choice::Is(value))
    }
}

/// How weights and activations are to be stored and multiplied; what is absent is `auto`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NumericChoices {
    /// How activations are stored. `auto`: as products run where that is asked for, else as is
    /// fast on the machine (see [`Machine::preferred`]).
    pub precision: Option<Choice<DType>>,
    /// How frozen weights are stored. `auto`: as activations.
    pub base_format: Option<Choice<BaseFormat>>,
    /// What multiplies. `auto`: bf16 where activations and weights are asked for in bf16, f32
    /// where one of them is, else what is fast on the machine.
    pub arithmetic: Option<Choice<Arithmetic>>,
}

fn named<T>(choice: Option<Choice<T>>) -> Option<T> {
    match choice {
        Some(Choice::Is(value)) => Some(value),
        Some(Choice::Auto) | None => None,
    }
}

impl NumericChoices {
    /// What they mean for a model that is trained whole, or measured as it is in its file: that is
    /// worth f32, unless asked otherwise.
    pub fn without_adapter(self) -> Self {
        let precision = self.precision.filter(|choice| *choice != Choice::Auto);
        Self { precision, ..self }.or_f32()
    }

    /// What they mean for a model that is trained by a method.
    pub fn for_method(self, method: Method) -> Self {
        match method {
            Method::Full => self.without_adapter(),
            Method::Lora | Method::BitFit => self,
        }
    }

    /// The same over the base that is trained on: see [`NumericChoices::over`]. Where all weights
    /// train, none is frozen in blocks.
    ///
    /// # Errors
    /// As there.
    pub fn for_training(self, method: Method, model: Option<&str>) -> RunResult<Self> {
        let own = self.for_method(method);
        match method {
            Method::Full => Ok(own),
            Method::Lora | Method::BitFit => own.over(model, None),
        }
    }

    /// What they mean where f32 is the default, and `auto` must be asked for. Who asks for products
    /// in bf16 asks for it.
    pub fn or_f32(self) -> Self {
        let default = match named(self.arithmetic) {
            Some(Arithmetic::Bf16) => Choice::Auto,
            Some(Arithmetic::F32) | None => Choice::Is(DType::F32),
        };
        let precision = self.precision.or(Some(default));
        Self { precision, ..self }
    }

    /// For a model that is not trained here: its weights are the original ones.
    ///
    /// # Errors
    /// They are to be int8, whose columns beside are found on the rows of a run.
    pub fn without_int8(self) -> RunResult<Self> {
        match named(self.base_format) {
            Some(BaseFormat::Int8) => Err(RunError::usage(
                "`--base-format int8` is for training: what was trained on it runs on the original weights",
            )
            .hint("pass --base-format bf16, or leave it out")),
            Some(_) | None => Ok(self),
        }
    }

    /// What they mean for a base, by its name or by an adapter's note of it: a GGUF's matrices stay
    /// in their blocks where nothing else is asked for, and an adapter that was trained over blocks
    /// runs over such.
    ///
    /// # Errors
    /// Blocks are to stay as they are stored, but the base is no GGUF; its file cannot be read.
    pub fn over(self, model: Option<&str>, adapter: Option<&str>) -> RunResult<Self> {
        let noted = || adapter.and_then(base_model_of);
        let model = model.map(str::to_owned).or_else(noted);
        if named(self.base_format).is_none()
            && let Some(format) = adapter.and_then(base_format_of)
        {
            let base_format = Some(Choice::Is(format));
            return Ok(Self {
                base_format,
                ..self
            });
        }
        let is_gguf = match &model {
            Some(model) => is_gguf(Path::new(model))?,
            None => false,
        };
        match (named(self.base_format), is_gguf) {
            (None, true) => Ok(Self {
                base_format: Some(Choice::Is(BaseFormat::Stored)),
                ..self
            }),
            (Some(BaseFormat::Stored), false) => Err(RunError::usage(format!(
                "`--base-format stored` keeps the blocks of a GGUF file, and the model is {}",
                model.map_or_else(|| "none".to_owned(), |name| format!("`{name}`"))
            ))
            .hint("pass --base-format q8_0, q4_0 or nf4 to put weights into blocks")),
            _ => Ok(self),
        }
    }

    /// What they mean on a machine. It is asked, and so measured, only for what nothing decides.
    ///
    /// # Errors
    /// The settings exclude each other, or the machine computes wrongly.
    pub fn on(self, machine: &Machine) -> RunResult<NumericSettings> {
        let (weights, arithmetic) = (named(self.base_format), named(self.arithmetic));
        let settings = match (named(self.precision), weights, arithmetic) {
            (Some(precision), _, _) => NumericSettings::new(precision, weights, arithmetic),
            // What products run in decides how activations are stored.
            (None, _, Some(Arithmetic::Bf16)) => {
                NumericSettings::new(DType::Bf16, weights, arithmetic)
            }
            (None, _, Some(Arithmetic::F32)) | (None, Some(BaseFormat::F32), None) => {
                NumericSettings::new(DType::F32, weights, arithmetic)
            }
            (None, _, None) => {
                let preferred = machine.preferred()?;
                NumericSettings {
                    base_format: weights.unwrap_or(preferred.base_format),
                    ..preferred
                }
            }
        };
        match (settings.base_format, settings.arithmetic) {
            (BaseFormat::F32, Arithmetic::Bf16) => Err(RunError::usage(
                "`--arithmetic bf16` would round f32 weights anew in every product, and `--base-format` is f32",
            )
            .hint("pass --base-format bf16, or leave out --arithmetic")),
            _ => Ok(settings),
        }
    }
}

/// The processor with the threads asked for, all cores where absent.
///
/// # Errors
/// The number of threads is out of range, or the system refuses threads or address space.
pub fn device(isa: Isa, numerics: NumericSettings, threads: Option<usize>) -> RunResult<Device> {
    let threads = threads.map(|n| in_range("threads", n)).transpose()?;
    Device::cpu_in(numerics, isa, threads.unwrap_or(0)).map_err(|error| refused(&error))
}

/// One thread that works as so many would, task by task.
///
/// # Errors
/// As [`device`].
pub fn one_for_many(isa: Isa, numerics: NumericSettings, workers: usize) -> RunResult<Device> {
    let workers = in_range("workers", workers)?;
    let cpu = Cpu::one_for_many(isa, workers).map_err(|error| refused(&error))?;
    Ok(Device::new(cpu, numerics))
}

fn in_range(name: &str, n: usize) -> RunResult<usize> {
    if (1..=LARGEST_THREADS).contains(&n) {
        return Ok(n);
    }
    Err(RunError::usage(format!(
        "`{name}` is {n}, expected from 1 to {LARGEST_THREADS}"
    )))
}

fn refused(error: &std::io::Error) -> RunError {
    RunError::failure("cannot start threads, or reserve address space for tensors")
        .caused_by(Some(error))
        .hint("pass --threads 1, or raise the limits of this process (`ulimit -v`, `ulimit -u`)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Rates;

    fn choices(words: [&str; 3]) -> NumericChoices {
        let names = ["precision", "base_format", "arithmetic"].into_iter();
        let given = names.zip(words).filter(|(_, word)| *word != "-");
        let map = given.map(|(name, word)| (name.to_owned(), word.into()));
        serde_json::from_value(serde_json::Value::Object(map.collect())).expect("names")
    }

    fn resolved(choices: NumericChoices, isa: Isa) -> Result<[&'static str; 3], String> {
        let machine = Machine::new(isa, Rates::ByName);
        let found = choices.on(&machine).map_err(|error| error.to_string())?;
        let NumericSettings {
            precision,
            base_format,
            arithmetic,
        } = found;
        Ok([precision.name(), base_format.name(), arithmetic.name()])
    }

    #[test]
    fn one_setting_decides_what_the_others_leave_open() {
        let (plain, fast) = (Isa::Avx2, Isa::Avx512Bf16);
        for (words, isa, wanted) in [
            // `--precision` alone means all three.
            (["f32", "-", "-"], fast, ["f32"; 3]),
            (["bf16", "-", "auto"], plain, ["bf16"; 3]),
            (["auto", "-", "-"], plain, ["f32"; 3]),
            (["-", "auto", "-"], fast, ["bf16"; 3]),
            (["f32", "bf16", "-"], fast, ["f32", "bf16", "f32"]),
            (["bf16", "f32", "-"], fast, ["bf16", "f32", "f32"]),
            (["bf16", "-", "f32"], plain, ["bf16", "bf16", "f32"]),
            (["f32", "bf16", "bf16"], plain, ["f32", "bf16", "bf16"]),
            // What products run in decides the type of activations that nobody names.
            (["-", "f32", "-"], fast, ["f32"; 3]),
            (["-", "-", "f32"], fast, ["f32"; 3]),
            (["-", "bf16", "-"], plain, ["f32", "bf16", "f32"]),
            (["-", "bf16", "-"], fast, ["bf16"; 3]),
            (["-", "bf16", "f32"], fast, ["f32", "bf16", "f32"]),
            (["-", "-", "bf16"], plain, ["bf16"; 3]),
            (["-", "int8", "-"], plain, ["f32", "int8", "f32"]),
            (["-", "int8", "-"], fast, ["bf16", "int8", "bf16"]),
            (["f32", "int8", "-"], fast, ["f32", "int8", "f32"]),
            (["bf16", "int8", "-"], plain, ["bf16", "int8", "bf16"]),
            (["-", "int8", "f32"], fast, ["f32", "int8", "f32"]),
        ] {
            assert_eq!(
                resolved(choices(words), isa),
                Ok(wanted),
                "{words:?} on {isa:?}"
            );
        }
        for words in [["f32", "-", "bf16"], ["bf16", "f32", "bf16"]] {
            let error = resolved(choices(words), plain).expect_err("it is refused");
            assert!(error.contains("--arithmetic"), "{error}");
            assert!(error.contains("--base-format"), "{error}");
        }
    }

    #[test]
    fn without_an_adapter_auto_is_f32_unless_bf16_is_named() {
        for (words, whole, predicted) in [
            (["-", "-", "-"], ["f32"; 3], ["f32"; 3]),
            (["auto", "-", "-"], ["f32"; 3], ["bf16"; 3]),
            (["bf16", "-", "-"], ["bf16"; 3], ["bf16"; 3]),
            (
                ["-", "bf16", "-"],
                ["f32", "bf16", "f32"],
                ["f32", "bf16", "f32"],
            ),
            (["-", "-", "bf16"], ["bf16"; 3], ["bf16"; 3]),
        ] {
            let asked = choices(words);
            let found = [asked.without_adapter(), asked.or_f32()];
            let found = found.map(|choices| resolved(choices, Isa::Avx512Bf16));
            assert_eq!(found, [Ok(whole), Ok(predicted)], "{words:?}");
        }
    }

    #[test]
    fn other_names_are_told_what_there_is() {
        let error = serde_json::from_str::<Choice<BaseFormat>>("\"f16\"").expect_err("no format");
        let error = error.to_string();
        for name in ["`f16`", "`f32`", "`bf16`", "`int8`", "`auto`"] {
            assert!(error.contains(name), "{error}");
        }
    }
}
