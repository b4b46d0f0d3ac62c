//! The processor: calls over slices in host memory, with the instructions of one set, on a pool of
//! threads.

mod attention;
mod elementwise;
mod norms;
mod products;
mod rows;

use std::ops::Range;
use std::sync::Arc;

use lowrank_kernels::product::{Arithmetic, BlockRows, WeightFormat};
use lowrank_kernels::{self as kernels, Isa, PANEL};

use super::{Backend, BlockOfRows, Scratch, Sizes};
use crate::call::Call;
use crate::host::Host;
use crate::param::PackedMatrix;
use crate::space::Space;
use crate::tensor::{Scalar, Tensor};

/// Evaluates an expression in which the given name stands for the element type of a storage.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            lowrank_kernels::DType::F32 => {
                type $E = f32;
                $body
            }
            lowrank_kernels::DType::Bf16 => {
                type $E = lowrank_kernels::bf16;
                $body
            }
        }
    };
}
use with_element;

/// What the processor's layouts take with some instructions and threads.
#[derive(Clone, Copy, Debug)]
pub struct CpuSizes {
    isa: Isa,
    threads: usize,
}

impl CpuSizes {
    /// `threads` 0 means one per core.
    pub fn new(isa: Isa, threads: usize) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let threads = if threads == 0 { cores() } else { threads };
        CpuSizes { isa, threads }
    }
}

impl Sizes for CpuSizes {
    fn threads(&self) -> usize {
        self.threads
    }

    fn packed_bytes(&self, format: WeightFormat, rows: usize, depth: usize) -> usize {
        kernels::product::packed_bytes(format, rows, depth)
    }

    fn depth_multiple(&self, arithmetic: Arithmetic) -> usize {
        match arithmetic {
            Arithmetic::F32 => 1,
            Arithmetic::Bf16 => PANEL,
        }
    }

    fn scratch_bytes(&self, call: &Call<'_>) -> usize {
        match call {
            Call::Product(product) => products::product_scratch_bytes(product, self.threads),
            Call::Outer(outer) => products::outer_scratch_bytes(outer, self.threads),
            Call::Attention { inputs, .. } => {
                attention::forward_scratch(inputs).bytes(self.threads)
            }
            Call::AttentionBackward {
                inputs, gradients, ..
            } => attention::backward_scratch(inputs, gradients).bytes(self.threads),
            Call::CachedAttention(call) => attention::cached_scratch(call).bytes(self.threads),
            Call::CrossEntropy(call) => kernels::bytes_of::<f32>(call.labels.len()),
            Call::ElementLoss { targets, .. } => kernels::bytes_of::<f32>(targets.len()),
            _ => 0,
        }
    }
}

/// The processor.
pub struct Cpu {
    sizes: Arc<CpuSizes>,
    pool: rayon::ThreadPool,
    space: Space,
}

impl Cpu {
    /// `isa` must be available here (see [`Isa::is_available`]); `threads` 0 means one per core.
    /// Panics if `isa` is not available.
    ///
    /// # Errors
    /// Threads or address space cannot be had.
    pub fn new(isa: Isa, threads: usize) -> Result<Self, std::io::Error> {
        assert!(isa.is_available(), "this processor has no {}", isa.name());
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("lowrank-{i}"))
            .build()
            .map_err(std::io::Error::other)?;
        Ok(Cpu {
            sizes: Arc::new(CpuSizes::new(isa, pool.current_num_threads())),
            pool,
            space: Space::reserve()?,
        })
    }

    /// One thread that does what `threads` would: work is cut, and scratch laid out, for those. How
    /// long each task takes then tells how they would do.
    ///
    /// # Errors
    /// As [`Cpu::new`].
    pub fn one_for_many(isa: Isa, threads: usize) -> Result<Self, std::io::Error> {
        let sizes = Arc::new(CpuSizes::new(isa, threads));
        Ok(Cpu {
            sizes,
            ..Self::new(isa, 1)?
        })
    }
}

/// A loss for each of `count` rows or elements, out of scratch that has no other use.
fn losses_in<'s>(scratch: &'s mut kernels::Scratch<'_>, count: usize) -> &'s mut [f32] {
    scratch.cut(kernels::bytes_of::<f32>(count)).0.take(count)
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        self.sizes.isa.name()
    }

    fn space(&self) -> &Space {
        &self.space
    }

    fn sizes(&self) -> Arc<dyn Sizes> {
        self.sizes.clone()
    }

    fn host(&self) -> Host {
        Host::new(self.sizes.isa)
    }

    fn install(&self, work: &mut (dyn FnMut() + Send)) {
        self.pool.install(work);
    }

    #[expect(clippy::too_many_lines, reason = "one exhaustive match over `Call`")]
    fn run(&self, call: Call<'_>, scratch: Scratch<'_>) {
        let isa = self.sizes.isa;
        let scratch = &mut kernels::Scratch::new(scratch.bytes(), self.sizes.threads);
        match call {
            Call::Fill { out, value } => elementwise::fill(out, value),
            Call::Copy { x, out } => rows::copy(x, out),
            Call::Convert { x, out } => elementwise::convert(isa, x, out),
            Call::Add { x, out } => elementwise::add(isa, x, out),
            Call::Scale { x, factor } => elementwise::scale(isa, x, factor),
            Call::Pack { x, transpose, out } => products::pack(isa, x, transpose, out),
            // On the pool that the scratch has slots for.
            Call::Product(product) => self.pool.install(|| {
                products::product(isa, product, scratch);
            }),
            Call::Outer(outer) => self.pool.install(|| {
                products::outer(isa, outer, scratch);
            }),
            Call::ExpandBlocks {
                blocks,
                stored,
                out,
            } => blocks.write::<f32>(stored.host(), stored.cols(), out.host_mut()),
            Call::GatherBlocks { blocks, whole, out } => {
                let rank = out.cols();
                blocks.gather::<f32>(whole.host(), rank, out.host_mut());
            }
            Call::Attention { inputs, out, lse } => self.pool.install(|| {
                attention::forward(isa, &inputs, out, lse, scratch);
            }),
            Call::AttentionBackward {
                inputs,
                out,
                lse,
                d_out,
                gradients,
            } => {
                let saved = attention::Saved { out, lse, d_out };
                self.pool.install(|| {
                    attention::backward(isa, &inputs, &saved, gradients, scratch);
                });
            }
            Call::CachedAttention(call) => self.pool.install(|| {
                attention::cached(isa, call, scratch);
            }),
            Call::Norm(call) => norms::norm(isa, call),
            Call::NormRecompute { saved, form, y } => norms::recompute(isa, &saved, &form, y),
            Call::NormBackward { saved, form, d } => norms::backward(isa, &saved, &form, d),
            Call::NormParamGrads {
                saved,
                d_y,
                d_weight,
                d_bias,
            } => norms::param_grads(isa, &saved, d_y, d_weight, d_bias),
            Call::Rotate { rotation, sense, x } => elementwise::rotate(isa, &rotation, sense, x),
            Call::Gated { kind, x, y } => elementwise::gated(isa, kind, &x, y),
            Call::GatedBackward { kind, x, d_y, d_x } => {
                elementwise::gated_backward(isa, kind, &x, d_y, d_x);
            }
            Call::Activation { kind, x, y } => with_element!(y.dtype(), E => match x {
                Some(x) => kernels::activation_forward(isa, kind, x.host::<E>(), y.host_mut()),
                None => kernels::activation_forward_in_place::<E>(isa, kind, y.host_mut()),
            }),
            Call::ActivationBackward { kind, pre, d } => with_element!(d.dtype(), E => {
                kernels::activation_backward(isa, kind, pre.host::<E>(), d.host_mut());
            }),
            Call::Dropout { dropout, x, y } => with_element!(y.dtype(), E => match x {
                Some(x) => kernels::dropout_into(isa, dropout, x.host::<E>(), y.host_mut()),
                None => kernels::dropout_apply::<E>(isa, dropout, y.host_mut()),
            }),
            Call::ColumnSum { x, out } => with_element!(x.dtype(), E => {
                kernels::column_sum(isa, x.host::<E>(), x.cols(), out.host_mut());
            }),
            Call::Embedding { tables, y } => rows::embedding(isa, tables, y),
            Call::EmbeddingBackward {
                d_y,
                ids,
                padding_idx,
                d_table,
            } => rows::embedding_backward(d_y, ids, padding_idx, d_table),
            Call::Gather { x, rows, y } => rows::gather(x, rows, y),
            Call::Scatter { x, rows, out } => rows::scatter(x, rows, out),
            Call::ScatterAdd { d_y, rows, d_x } => rows::scatter_add(isa, d_y, rows, d_x),
            Call::Slice { x, first, y } => rows::slice(x, first, y),
            Call::SliceBackward { d_y, first, d_x } => rows::slice_backward(isa, d_y, first, d_x),
            Call::PutColumns { x, columns, out } => rows::put_columns(x, columns, out),
            Call::TakeColumns { x, columns, out } => rows::take_columns(x, columns, out),
            Call::HeadPart { x, form, bias, y } => rows::head_part(x, form, bias, y),
            Call::HeadPartBackward { d_y, form, d_x } => rows::head_part_backward(d_y, form, d_x),
            Call::Unfold {
                x,
                offsets,
                taps,
                y,
            } => with_element!(x.dtype(), E => {
                kernels::neighbours(offsets, taps, x.cols(), x.host::<E>(), y.host_mut());
            }),
            Call::UnfoldBackward {
                d_y,
                offsets,
                taps,
                d_x,
            } => with_element!(d_y.dtype(), E => {
                let cols = d_x.cols();
                kernels::neighbours_backward(offsets, taps, cols, d_y.host::<E>(), d_x.host_mut());
            }),
            Call::CrossEntropy(call) => {
                let losses = losses_in(scratch, call.labels.len());
                elementwise::cross_entropy(isa, call, losses);
            }
            Call::ElementLoss {
                kind,
                logits,
                targets,
                grad_scale,
                sum,
            } => {
                let losses = losses_in(scratch, targets.len());
                *sum.host_mut() +=
                    elementwise::element_loss(kind, logits, targets, grad_scale, losses);
            }
            Call::AdamW {
                settings,
                gradient,
                value,
                m,
                v,
            } => {
                let (m, v) = (m.host_mut(), v.host_mut());
                kernels::adamw_step(isa, &settings, value.host_mut(), gradient.host(), m, v);
            }
            Call::ClearScalar { out } => *out.host_mut() = 0.0,
            Call::SumOfSquares { x, out } => {
                *out.host_mut() += kernels::sum_of_squares(isa, x.host());
            }
        }
    }

    fn read(&self, tensor: &Tensor, values: &mut [f32]) {
        with_element!(tensor.dtype(), E => {
            kernels::convert(self.sizes.isa, values, tensor.host::<E>());
        });
    }

    fn write(&self, tensor: &mut Tensor, BlockOfRows { first, values }: BlockOfRows<'_>) {
        let start = first * tensor.cols();
        with_element!(tensor.dtype(), E => {
            let into = &mut tensor.host_mut::<E>()[start..start + values.len()];
            kernels::convert(self.sizes.isa, into, values);
        });
    }

    fn read_scalar(&self, scalar: &Scalar) -> f64 {
        scalar.host()
    }

    fn write_packed(&self, matrix: &mut PackedMatrix, block: BlockOfRows<'_>) {
        let depth = matrix.in_features();
        let rows = block.values.len() / depth.max(1);
        let view = kernels::MatRef::new(block.values, rows, depth);
        products::pack_rows(self.sizes.isa, view, block.first, matrix);
    }

    fn write_packed_blocks(
        &self,
        matrix: &mut PackedMatrix,
        rows: Range<usize>,
        parts: &BlockRows,
    ) {
        products::pack_block_rows(parts, rows, matrix);
    }

    fn write_packed_transposed(&self, matrix: &mut PackedMatrix, values: &[f32]) {
        let (rows, cols) = (matrix.in_features(), matrix.out_features());
        let view = kernels::MatRef::new(values, rows, cols).transposed();
        products::pack_rows(self.sizes.isa, view, 0, matrix);
    }

    fn read_packed(&self, matrix: &PackedMatrix, values: &mut [f32]) {
        products::weights(matrix).unpack(values);
    }
}
