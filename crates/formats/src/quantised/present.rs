//! Which tensors of a checkpoint are parts of packed ones, by the `quantization_config` of its
//! `config.json`: they are taken off the list, and what they stand for takes their place.
//! Everything that is read later is checked here. Knows no model.

mod words;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::Value;

use super::bitsandbytes::{EightBits, FourBits, LARGEST_STATE, Maxima, QuantState, size};
use super::columns::Packing;
use super::microscaled::{BLOCK_BYTES, Microscaled};
use super::packed::{Files, Packed, Part};
use super::scaled::Scaled;
use crate::Result;
use crate::checkpoint::values::{PackedValues, Plain, RowOrder, Values};
use crate::checkpoint::{Entry, PackedAs, TensorInfo};
use crate::dtype::DType;
use crate::error::FormatError;
use crate::source::Source;

/// Models whose layers stand transposed in their own checkpoints, but not where they are packed.
/// Source: transformers' `Conv1D`.
const TRANSPOSED_MODELS: [&str; 3] = ["gpt2", "openai-gpt", "imagegpt"];

/// The ways of packing that are read, by `quant_method`.
const METHODS: [&str; 6] = [
    "bitsandbytes",
    "fp8",
    "compressed-tensors",
    "gptq",
    "awq",
    "mxfp4",
];

/// The tensors of a checkpoint while packed ones are looked for.
struct Listing<'a> {
    path: &'a Path,
    files: Files<'a>,
    parts: HashMap<String, Part>,
    names: Vec<String>,
    taken: HashSet<String>,
    found: Vec<Found>,
    is_transposed: bool,
}

/// A packed tensor.
struct Found {
    name: String,
    /// As it is stored.
    shape: Vec<usize>,
    order: RowOrder,
    values: Box<dyn Packed>,
}

/// The list of tensors with packed ones in the place of their parts; as it is where nothing is
/// quantised.
///
/// # Errors
/// A way of packing that is not known; parts that are missing or do not fit each other.
pub(crate) fn present(
    entries: Vec<Entry>,
    sources: &[Source],
    path: &Path,
    config: &Value,
) -> Result<Vec<Entry>> {
    let key = ["quantization_config", "compression_config"];
    let Some(quantised) = key.iter().find_map(|key| config.get(*key)?.as_object()) else {
        return Ok(entries);
    };
    let method = quantised.get("quant_method").and_then(Value::as_str);
    let model_type = config.get("model_type").and_then(Value::as_str);
    let mut listing = Listing {
        path,
        files: Files(sources),
        parts: entries.iter().filter_map(part_of).collect(),
        names: entries.iter().map(|e| e.info.name.clone()).collect(),
        taken: HashSet::new(),
        found: Vec::new(),
        is_transposed: model_type.is_some_and(|name| TRANSPOSED_MODELS.contains(&name)),
    };
    let number = |key: &str| quantised.get(key).and_then(Value::as_i64);
    match method {
        Some("bitsandbytes") => listing.bitsandbytes()?,
        Some("fp8") => listing.fp8(quantised.get("weight_block_size"))?,
        Some("compressed-tensors") => listing.compressed_tensors()?,
        Some("gptq") => {
            let is_second =
                quantised.get("checkpoint_format").and_then(Value::as_str) == Some("gptq_v2");
            let less = if is_second { 0 } else { 1 };
            listing.columns(Packing::Gptq { less }, number("bits"), number("group_size"))?;
        }
        Some("awq") => listing.columns(Packing::Awq, number("bits"), number("group_size"))?,
        Some("mxfp4") => listing.mxfp4()?,
        other => {
            let other = other.unwrap_or("missing");
            let known = METHODS.map(|name| format!("`{name}`")).join(", ");
            return Err(listing.fault(
                "quantization_config",
                format!("`quant_method` is `{other}`, expected one of {known}"),
            ));
        }
    }
    Ok(listing.finish(entries))
}

fn part_of(entry: &Entry) -> Option<(String, Part)> {
    let Values::Plain(Plain {
        offset,
        walk: None,
        plus: 0.0,
    }) = entry.values
    else {
        return None;
    };
    let info = &entry.info;
    let part = Part {
        dtype: info.dtype,
        shape: info.shape.clone(),
        file: info.file,
        offset,
    };
    Some((info.name.clone(), part))
}

impl Listing<'_> {
    fn fault(&self, name: &str, message: String) -> FormatError {
        FormatError::Packed {
            path: self.path.to_owned(),
            name: name.to_owned(),
            message,
        }
    }

    /// The part `name`, taken off the list, if it is there.
    fn take(&mut self, name: String) -> Option<Part> {
        let part = self.parts.get(&name).cloned()?;
        self.taken.insert(name);
        Some(part)
    }

    /// The part of `module`, which must be there, of one of these types.
    fn need(&mut self, module: &str, end: &str, types: &[DType]) -> Result<Part> {
        let name = format!("{module}{end}");
        let Some(part) = self.take(name.clone()) else {
            return Err(self.fault(&name, "is missing beside the packed values".into()));
        };
        self.of_type(&name, &part, types)?;
        Ok(part)
    }

    fn of_type(&self, name: &str, part: &Part, types: &[DType]) -> Result<()> {
        if types.contains(&part.dtype) {
            return Ok(());
        }
        let names: Vec<&str> = types.iter().map(|dtype| dtype.name()).collect();
        let message = format!(
            "is stored as {}, expected {}",
            part.dtype,
            names.join(" or ")
        );
        Err(self.fault(name, message))
    }

    fn of_shape(&self, name: &str, part: &Part, expected: &[usize]) -> Result<()> {
        if part.shape == expected {
            return Ok(());
        }
        let message = format!("has the shape {:?}, expected {expected:?}", part.shape);
        Err(self.fault(name, message))
    }

    fn of_count(&self, name: &str, part: &Part, expected: usize) -> Result<()> {
        if part.count() == expected {
            return Ok(());
        }
        let message = format!("has {} values, expected {expected}", part.count());
        Err(self.fault(name, message))
    }

    fn of_two_dimensions(&self, name: &str, part: &Part) -> Result<[usize; 2]> {
        match part.shape[..] {
            [rows, cols] if rows > 0 && cols > 0 => Ok([rows, cols]),
            _ => Err(self.fault(
                name,
                format!("has the shape {:?}, expected two dimensions", part.shape),
            )),
        }
    }

    /// The names that end so, without their ends.
    fn modules(&self, end: &str) -> Vec<String> {
        let names = self.names.iter();
        names
            .filter_map(|name| Some(name.strip_suffix(end)?.to_owned()))
            .collect()
    }

    fn add(&mut self, name: String, shape: &[usize], values: impl Packed + 'static) {
        let order = match shape {
            [_, _] if self.is_transposed && is_layer(&name) => RowOrder::Transposed,
            _ => RowOrder::Same,
        };
        self.found.push(Found {
            name,
            shape: shape.to_vec(),
            order,
            values: Box::new(values),
        });
    }

    fn bitsandbytes(&mut self) -> Result<()> {
        for (kind, format) in [("nf4", "NF4"), ("fp4", "FP4")] {
            let end = format!(".quant_state.bitsandbytes__{kind}");
            for name in self.modules(&end) {
                self.four_bits(&name, &end, format)?;
            }
        }
        for module in self.modules(".SCB") {
            let name = format!("{module}.weight");
            let codes = self.need(&name, "", &[DType::I8])?;
            let [rows, cols] = self.of_two_dimensions(&name, &codes)?;
            let maxima = self.need(&module, ".SCB", &[DType::F32])?;
            self.of_count(&format!("{module}.SCB"), &maxima, rows)?;
            let settings = self.take(format!("{module}.weight_format"));
            if let Some(part) = &settings {
                let place = format!("{module}.weight_format");
                self.of_type(&place, part, &[DType::U8])?;
                self.of_count(&place, part, 1)?;
                if part.bytes(self.files, 0, 1)? != [0] {
                    return Err(self.fault(&place, "is no row-major order (0)".into()));
                }
            }
            let values = EightBits {
                codes,
                maxima,
                settings,
            };
            self.add(name, &[rows, cols], values);
        }
        Ok(())
    }

    fn four_bits(&mut self, name: &str, end: &str, format: &'static str) -> Result<()> {
        let state_part = self.need(name, end, &[DType::U8])?;
        let place = format!("{name}{end}");
        if state_part.count() > LARGEST_STATE {
            let found = state_part.count();
            let message = format!("has {found} bytes, expected a small JSON object");
            return Err(self.fault(&place, message));
        }
        let bytes = state_part.bytes(self.files, 0, state_part.count())?;
        let state = QuantState::parse(&bytes);
        let state = state.map_err(|message| self.fault(&place, message))?;
        let count = state.count;
        let codes = self.need(name, "", &[DType::U8])?;
        self.of_count(name, &codes, count.div_ceil(2))?;
        let map_part = self.need(name, ".quant_map", &[DType::F32])?;
        self.of_count(&format!("{name}.quant_map"), &map_part, 16)?;
        let mut map = [0.0; 16];
        map.copy_from_slice(&map_part.floats(self.files, 0, 16)?);
        let mut settings = vec![state_part, map_part];
        let values = FourBits {
            format,
            codes,
            map,
            block: state.block,
            maxima: self.maxima(name, &place, &state, &mut settings)?,
            dtype: state.dtype,
            settings,
        };
        self.add(name.to_owned(), &state.shape, values);
        Ok(())
    }

    /// The largest value of each block, which may be quantised itself, as `state`, which stands at
    /// `place`, says. `settings` takes the parts
    /// that only say how.
    fn maxima(
        &mut self,
        name: &str,
        place: &str,
        state: &QuantState,
        settings: &mut Vec<Part>,
    ) -> Result<Maxima> {
        const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
        let (blocks, codes_place) = (state.count.div_ceil(state.block), format!("{name}.absmax"));
        let nested = state.json.get("nested_blocksize");
        let Some(nested) = nested.filter(|value| !value.is_null()) else {
            let part = self.need(name, ".absmax", &FLOATS)?;
            self.of_count(&codes_place, &part, blocks)?;
            return Ok(Maxima::Plain(part));
        };
        let codes = self.need(name, ".absmax", &[DType::U8])?;
        self.of_count(&codes_place, &codes, blocks)?;
        let offset = state.json.get("nested_offset").and_then(Value::as_f64);
        let block = size(Some(nested)).filter(|n| *n > 0);
        let Some((block, offset)) = block.zip(offset) else {
            let message = "has no usable `nested_blocksize` and `nested_offset`";
            return Err(self.fault(place, message.into()));
        };
        let maxima = self.need(name, ".nested_absmax", &FLOATS)?;
        let maxima_place = format!("{name}.nested_absmax");
        self.of_count(&maxima_place, &maxima, blocks.div_ceil(block))?;
        let map_part = self.need(name, ".nested_quant_map", &[DType::F32])?;
        self.of_count(&format!("{name}.nested_quant_map"), &map_part, 256)?;
        let map = map_part.floats(self.files, 0, 256)?;
        settings.push(map_part);
        Ok(Maxima::Nested {
            codes,
            maxima,
            map,
            block,
            offset: offset as f32,
        })
    }

    fn fp8(&mut self, block: Option<&Value>) -> Result<()> {
        let sizes = block.and_then(Value::as_array);
        let given = |i: usize| size(sizes?.get(i)).filter(|n| *n > 0);
        let block = [given(0).unwrap_or(128), given(1).unwrap_or(128)];
        for end in ["_scale_inv", "_scale"] {
            for name in self.modules(end) {
                self.scaled(&name, end, block)?;
            }
        }
        Ok(())
    }

    fn compressed_tensors(&mut self) -> Result<()> {
        for module in self.modules(".weight_packed") {
            self.dense_rows(&module)?;
        }
        for name in self.modules("_scale") {
            self.scaled(&name, "_scale", [128, 128])?;
        }
        Ok(())
    }

    /// A weight of 8 bits with its scales. A scale of something else is left where it is.
    fn scaled(&mut self, name: &str, end: &str, block: [usize; 2]) -> Result<()> {
        let format = match self.parts.get(name).map(|part| part.dtype) {
            Some(DType::F8E4M3) => "FP8 (e4m3)",
            Some(DType::F8E5M2) => "FP8 (e5m2)",
            Some(DType::I8) => "int8",
            Some(_) | None => return Ok(()),
        };
        let codes = self.need(name, "", &[DType::F8E4M3, DType::F8E5M2, DType::I8])?;
        let [rows, cols] = self.of_two_dimensions(name, &codes)?;
        let place = format!("{name}{end}");
        let scales = self.need(name, end, &[DType::F32, DType::F16, DType::BF16])?;
        let tiles = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
        let block = match scales.shape[..] {
            _ if scales.count() == 1 => [rows, cols],
            [n] | [n, 1] if n == rows => [1, cols],
            [a, b] if [a, b] == tiles => block,
            _ => {
                let message = format!(
                    "has the shape {:?}, expected one value, {rows} or {tiles:?}",
                    scales.shape
                );
                return Err(self.fault(&place, message));
            }
        };
        let values = Scaled {
            format,
            codes,
            scales,
            block,
        };
        self.add(name.to_owned(), &[rows, cols], values);
        Ok(())
    }

    /// gpt-oss's experts: a matrix each, turned as transformers has them.
    fn mxfp4(&mut self) -> Result<()> {
        for name in self.modules("_blocks") {
            let blocks = self.need(&name, "_blocks", &[DType::U8])?;
            let place = format!("{name}_blocks");
            let [experts, rows, groups, BLOCK_BYTES] = blocks.shape[..] else {
                let message = format!(
                    "has the shape {:?}, expected [experts, rows, blocks, {BLOCK_BYTES}]",
                    blocks.shape
                );
                return Err(self.fault(&place, message));
            };
            let scales = self.need(&name, "_scales", &[DType::U8])?;
            self.of_shape(&format!("{name}_scales"), &scales, &[experts, rows, groups])?;
            let Some(cols) = groups
                .checked_mul(2 * BLOCK_BYTES)
                .filter(|_| blocks.count() > 0)
            else {
                return Err(self.fault(&place, format!("has the shape {:?}", blocks.shape)));
            };
            self.found.push(Found {
                name,
                shape: vec![experts, rows, cols],
                order: RowOrder::Transposed,
                values: Box::new(Microscaled { blocks, scales }),
            });
        }
        Ok(())
    }

    /// The list with packed tensors where their first part was.
    fn finish(self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut list: Vec<Entry> = entries
            .into_iter()
            .filter(|entry| !self.taken.contains(&entry.info.name))
            .collect();
        for Found {
            name,
            mut shape,
            order,
            values,
        } in self.found
        {
            let bytes = values.parts().iter().map(|part| part.byte_len()).sum();
            let packed = PackedAs {
                format: values.format(),
                bytes,
            };
            let file = values.parts()[0].file;
            let cols = shape.last().copied().unwrap_or(1);
            let stored = match (order, &mut shape[..]) {
                (RowOrder::Transposed, [.., rows, cols]) => {
                    std::mem::swap(rows, cols);
                    [*cols, *rows]
                }
                _ => [shape.iter().product::<usize>() / cols, cols],
            };
            list.push(Entry {
                values: Values::Packed(PackedValues {
                    values,
                    stored,
                    order,
                }),
                info: TensorInfo {
                    name,
                    dtype: DType::F32,
                    packed: Some(packed),
                    shape,
                    file,
                },
            });
        }
        list
    }
}

/// A layer of GPT-2, whose matrices transformers calls `Conv1D`.
fn is_layer(name: &str) -> bool {
    ["c_attn.weight", "c_proj.weight", "c_fc.weight"]
        .iter()
        .any(|end| name.ends_with(end))
}
