//! The batch that is chosen for a limit fits into it, planned and counted; the next larger one does
//! not.

use lowrank_model::Recompute;
use lowrank_train::config::{MemorySettings, TrainConfig};
use lowrank_train::fit::{BatchShape, Price, TooLittle, largest_batch};

use crate::planned::planned_peak;
use crate::tiny::{Place, config, run};

fn with(shape: BatchShape) -> TrainConfig {
    let mut config = config();
    config.lora.lora_dropout = 0.0;
    config.evaluation.per_device_eval_batch_size = 1;
    config.memory = MemorySettings::default();
    shape.apply(&mut config);
    config
}

fn price(shape: BatchShape) -> Result<Price, lowrank_model::ModelError> {
    Ok(Price {
        bytes: planned_peak(Place::default(), &with(shape))?.total(),
        flops_per_token: if shape.recompute == Recompute::Layers {
            1.5
        } else {
            1.0
        },
        tokens_per_batch: 7.0 * shape.batch_size as f64,
    })
}

#[test]
fn the_chosen_batch_fits_and_the_next_larger_does_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let shapes = BatchShape::all(12, None);
    let needs = |i: usize| price(shapes[i]).expect("the rows fit").bytes;
    let mut losses: Vec<Vec<f64>> = Vec::new();
    let (most, least) = (needs(0), needs(shapes.len() - 1));
    assert!(
        least < needs(5) && needs(5) < most,
        "one row, recomputed or not, and twelve"
    );
    let mut seen = Vec::new();
    for part in 0..=8 {
        let limit = least + (most - least) * part / 8;
        let shape = largest_batch(&shapes, limit, price)
            .expect("the rows fit")
            .expect("fits");
        assert_eq!(shape.batch_size * shape.accumulation, 12);
        let place = shapes
            .iter()
            .position(|s| *s == shape)
            .expect("one of them");
        assert!(needs(place) <= limit);
        if place > 0 && shapes[place - 1].recompute == shape.recompute {
            // The one before is the next larger of its way.
            assert!(needs(place - 1) > limit, "{shape:?} for {limit}");
        }
        if seen.contains(&shape) {
            continue;
        }
        seen.push(shape);
        let left = run(&with(shape), &dir.path().join(part.to_string()), 0).expect("the run ends");
        assert_eq!(left.peak.total(), needs(place), "counted as planned");
        losses.push(left.log.iter().filter_map(|row| row.loss).collect());
    }
    assert!(
        seen.len() >= 4 && seen.iter().any(|s| s.recompute == Recompute::Layers),
        "{seen:?}"
    );
    // Sums in another order: losses differ by up to 1e-6 over these steps.
    for other in &losses[1..] {
        assert_eq!(other.len(), losses[0].len());
        for (a, b) in other.iter().zip(&losses[0]) {
            assert!((a - b).abs() <= 2e-5, "{a} and {b}");
        }
    }
    let error = largest_batch(&shapes, least - 1, price).expect("the rows fit");
    assert_eq!(
        error,
        Err(TooLittle {
            limit: least - 1,
            least
        })
    );
}
