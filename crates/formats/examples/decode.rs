//! Decodes every float of a model, block by block, and says how long it took:
//! `cargo run --release -p lowrank-formats --example decode FILE.gguf [THREADS]`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use lowrank_formats::{Checkpoint, TensorInfo};

/// Values at a time.
const BLOCK_VALUES: usize = 1 << 18;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let path = words.next().ok_or("expected a file or a folder")?;
    let threads: usize = words.next().map_or(Ok(2), |word| word.parse())?;
    let begin = Instant::now();
    let path = std::path::Path::new(&path);
    let checkpoint = Checkpoint::open_model(path)?;
    let opened = begin.elapsed();
    let infos: Vec<&TensorInfo> = checkpoint.infos().filter(|t| t.dtype.is_float()).collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<f64, lowrank_formats::FormatError> {
        let mut block = vec![0.0; BLOCK_VALUES];
        let mut sum = 0.0;
        while let Some(info) = infos.get(next.fetch_add(1, Ordering::Relaxed)) {
            for start in (0..info.numel()).step_by(BLOCK_VALUES) {
                let part = &mut block[..BLOCK_VALUES.min(info.numel() - start)];
                checkpoint.read_f32_range(&info.name, start, part)?;
                sum += f64::from(part[0]);
            }
        }
        Ok(sum)
    };
    let sum = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut sum = work()?;
        for other in others {
            sum += other.join().expect("no panic")?;
        }
        Ok::<f64, lowrank_formats::FormatError>(sum)
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    let values: usize = infos.iter().map(|info| info.numel()).sum();
    let bytes: u64 = infos.iter().map(|info| info.stored_bytes()).sum();
    println!(
        "{} tensors, {values} values, {:.1} MB: opened in {:.1} ms, decoded in {seconds:.3} s on {threads} threads ({sum:e})",
        infos.len(),
        bytes as f64 / 1e6,
        opened.as_secs_f64() * 1e3
    );
    Ok(())
}
