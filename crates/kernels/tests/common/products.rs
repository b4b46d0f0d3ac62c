//! Products with scratch and packed operands of their own.

use lowrank_kernels::product::*;
use lowrank_kernels::*;

/// A packed matrix in memory on a cache line, as the engine's is.
pub struct Packed {
    format: WeightFormat,
    shape: [usize; 2],
    words: Vec<u64>,
}

impl Packed {
    pub fn of(isa: Isa, format: WeightFormat, w: MatRef) -> Self {
        Self::filled(format, [w.rows(), w.cols()], |bytes| {
            pack_weights(isa, format, w, bytes);
        })
    }

    pub fn of_blocks(format: BlockFormat, rows: &BlockRows, shape: [usize; 2]) -> Self {
        Self::filled(WeightFormat::Blocks(format), shape, |bytes| {
            pack_blocks(format, rows, shape, bytes);
        })
    }

    fn filled(format: WeightFormat, shape: [usize; 2], fill: impl FnOnce(&mut [u8])) -> Self {
        let len = packed_bytes(format, shape[0], shape[1]);
        let mut words = vec![u64::MAX; len.div_ceil(8)];
        // SAFETY: any words are bytes, and any bytes words.
        let bytes = unsafe { words.align_to_mut::<u8>() }.1;
        fill(&mut bytes[..len]);
        Self {
            format,
            shape,
            words,
        }
    }

    pub fn weights(&self) -> PackedWeights<'_> {
        let len = packed_bytes(self.format, self.shape[0], self.shape[1]);
        // SAFETY: any words are bytes.
        let bytes = unsafe { self.words.align_to::<u8>() }.1;
        PackedWeights::new(self.format, self.shape, &bytes[..len])
    }

    pub fn panels(&self, side: Side) -> WeightPanels<'_> {
        self.weights().panels(side)
    }
}

/// A product in no more scratch than its shape asks for.
pub fn run_product(isa: Isa, call: &Product, epilogue: Epilogue, c: Output) {
    let threads = rayon::current_num_threads();
    let bytes = product_scratch(&call.shape(c.values.dtype()), threads).bytes(threads);
    // As in memory that was used before: what is not written first makes a result NaN.
    let mut dirty = vec![u8::MAX; bytes + 64];
    let start = dirty.as_ptr().align_offset(64);
    let mut scratch = Scratch::new(&mut dirty[start..start + bytes], threads);
    product(isa, call, epilogue, c, &mut scratch);
}

/// The same into new values with rows end to end.
pub fn product_of(isa: Isa, call: &Product) -> Vec<f32> {
    let [row_stride, _] = call.b.shape();
    let mut c = vec![f32::NAN; call.a.rows() * row_stride];
    let values = ValuesMut::F32(&mut c);
    run_product(isa, call, Epilogue::Store, Output { values, row_stride });
    c
}

/// An outer product in no more scratch than its shape asks for.
pub fn run_outer(isa: Isa, call: &Outer, c: &mut [f32]) {
    let threads = rayon::current_num_threads();
    let bytes = outer_scratch(&call.shape(), threads).bytes(threads);
    outer(
        isa,
        call,
        c,
        &mut ScratchBuffer::new(bytes, threads).scratch(),
    );
}

pub fn narrow(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&v| bf16::from_f32(v)).collect()
}

/// x rounded to bf16.
pub fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
}
