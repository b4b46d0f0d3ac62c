//! Tensors that are packed into words of 32 bits with groups of scales and zeros: GPTQ, AWQ, and
//! compressed-tensors' `pack-quantized`. Everything that is read later is checked here.

use super::super::columns::{Columns, Packing, Rows};
use super::super::packed::Part;
use super::Listing;
use crate::Result;
use crate::dtype::DType;

const FLOATS: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

impl Listing<'_> {
    /// GPTQ and AWQ, by the `bits` and `group_size` of the configuration.
    pub(super) fn columns(
        &mut self,
        packing: Packing,
        bits: Option<i64>,
        group: Option<i64>,
    ) -> Result<()> {
        let allowed: &[i64] = match packing {
            Packing::Gptq { .. } => &[2, 3, 4, 8],
            Packing::Awq => &[4],
        };
        let Some(bits) = bits.filter(|bits| allowed.contains(bits)) else {
            let bits = bits.map_or("missing".to_owned(), |bits| bits.to_string());
            let message = format!("`bits` is {bits}, expected one of {allowed:?}");
            return Err(self.fault("quantization_config", message));
        };
        for module in self.modules(".qweight") {
            self.columns_of(&module, packing, bits as usize, group)?;
        }
        Ok(())
    }

    fn columns_of(
        &mut self,
        module: &str,
        packing: Packing,
        bits: usize,
        group: Option<i64>,
    ) -> Result<()> {
        let place = |end: &str| format!("{module}.{end}");
        let codes = self.need(module, ".qweight", &[DType::I32])?;
        let stored = self.of_two_dimensions(&place("qweight"), &codes)?;
        let scales = self.need(module, ".scales", &FLOATS)?;
        let [groups, out] = self.of_two_dimensions(&place("scales"), &scales)?;
        let inp = match packing {
            Packing::Gptq { .. } => stored[0].saturating_mul(32) / bits,
            Packing::Awq => stored[0],
        };
        // Codes fill whole words: those of 3 bits 3 words, 32 at a time.
        let per = if 32 % bits == 0 { 32 / bits } else { 32 };
        for (what, count) in [("outputs", out), ("inputs", inp)] {
            let is_packed = what == "outputs" || packing != Packing::Awq;
            if is_packed && !count.is_multiple_of(per) {
                let message = format!("has {count} {what}, expected a multiple of {per}");
                return Err(self.fault(&place("qweight"), message));
            }
        }
        let words = |codes: usize| codes / per * per * bits / 32;
        let expected = match packing {
            Packing::Gptq { .. } => [words(inp), out],
            Packing::Awq => [inp, words(out)],
        };
        self.of_shape(&place("qweight"), &codes, &expected)?;
        let zeros = self.need(module, ".qzeros", &[DType::I32])?;
        self.of_shape(&place("qzeros"), &zeros, &[groups, words(out)])?;
        let table = self.take(place("g_idx"));
        self.check_groups(&place("g_idx"), table.as_ref(), [inp, groups])?;
        let group = match group.and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n > 0 => n,
            // -1: one group for all.
            Some(_) | None => inp,
        };
        if table.is_none() && inp.div_ceil(group) != groups {
            let message = format!("has {groups} groups of {group} for {inp} inputs");
            return Err(self.fault(&place("scales"), message));
        }
        let values = Columns {
            format: match packing {
                Packing::Gptq { .. } => "GPTQ",
                Packing::Awq => "AWQ",
            },
            packing,
            bits,
            shape: [out, inp],
            codes,
            zeros,
            scales,
            group,
            groups: table,
        };
        self.add(place("weight"), &[out, inp], values);
        Ok(())
    }

    /// A table of the groups of inputs names groups that there are.
    fn check_groups(
        &self,
        place: &str,
        table: Option<&Part>,
        [inp, groups]: [usize; 2],
    ) -> Result<()> {
        let Some(table) = table else { return Ok(()) };
        self.of_type(place, table, &[DType::I32, DType::I64])?;
        self.of_count(place, table, inp)?;
        let numbers = table.integers(self.files, 0, inp)?;
        let is_group = |n: &i64| usize::try_from(*n).is_ok_and(|n| n < groups);
        match numbers.iter().find(|n| !is_group(n)) {
            None => Ok(()),
            Some(other) => Err(self.fault(place, format!("names the group {other} of {groups}"))),
        }
    }

    /// compressed-tensors' `pack-quantized`.
    pub(super) fn dense_rows(&mut self, module: &str) -> Result<()> {
        let place = |end: &str| format!("{module}.weight_{end}");
        let codes = self.need(module, ".weight_packed", &[DType::I32])?;
        let settings = self.need(module, ".weight_shape", &[DType::I64, DType::I32])?;
        self.of_count(&place("shape"), &settings, 2)?;
        let ([rows, cols], bits) = self.dense_shape(&place("packed"), &codes, &settings)?;
        let scales = self.need(module, ".weight_scale", &FLOATS)?;
        let groups = match scales.shape[..] {
            _ if scales.count() == 1 => 1,
            [n] if n == rows => 1,
            [n, groups] if n == rows && groups > 0 => groups,
            _ => {
                let message = format!("has the shape {:?}, expected {rows} rows", scales.shape);
                return Err(self.fault(&place("scale"), message));
            }
        };
        let table = self.take(place("g_idx"));
        self.check_groups(&place("g_idx"), table.as_ref(), [cols, groups])?;
        if table.is_none() && !cols.is_multiple_of(groups) {
            let message = format!("has {groups} groups for {cols} inputs");
            return Err(self.fault(&place("scale"), message));
        }
        let zeros = self.take(place("zero_point"));
        if let Some(zeros) = &zeros {
            self.of_type(&place("zero_point"), zeros, &[DType::I32])?;
            let expected = [(rows * bits).div_ceil(32), groups];
            self.of_shape(&place("zero_point"), zeros, &expected)?;
        }
        let values = Rows {
            bits,
            shape: [rows, cols],
            codes,
            scales,
            zeros,
            groups: table,
            settings,
        };
        self.add(format!("{module}.weight"), &[rows, cols], values);
        Ok(())
    }

    /// Rows and columns, and the bits of a code, which follow from the count of words.
    fn dense_shape(
        &self,
        place: &str,
        codes: &Part,
        settings: &Part,
    ) -> Result<([usize; 2], usize)> {
        let [rows, words] = self.of_two_dimensions(place, codes)?;
        let shape = settings.integers(self.files, 0, 2)?;
        let cols = usize::try_from(shape[1])
            .ok()
            .filter(|n| *n > 0 && shape[0] == rows as i64);
        let bits = |cols: usize| {
            (1..=8).find(|bits| cols.checked_mul(*bits).map(|n| n.div_ceil(32)) == Some(words))
        };
        cols.and_then(|cols| Some(([rows, cols], bits(cols)?)))
            .ok_or_else(|| {
                let found = format!("[{rows}, {words}]");
                let message = format!("has the shape {found}, which is no packed {shape:?}");
                self.fault(place, message)
            })
    }
}
