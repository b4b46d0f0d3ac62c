//! The golden files are those that the script wrote, each can be read, and the gradient comparator
//! can fail on them.

use lowrank_testkit::{
    Golden, Labels, golden_root, read_golden_json, read_safetensors, verify_manifest,
};

#[test]
fn every_file_has_the_hash_of_the_manifest() {
    match verify_manifest(&golden_root()) {
        Ok(count) => assert!(count > 100, "only {count} files"),
        Err(faults) => panic!(
            "golden files differ from their manifest:\n{}",
            faults.join("\n")
        ),
    }
}

#[test]
fn every_case_opens_and_is_whole() {
    let names = Golden::names().unwrap();
    assert!(names.len() >= 20, "{names:?}");
    for name in names {
        let case = Golden::open(&name).unwrap();
        assert_eq!(case.name, name);
        assert!(case.model_dir().join("config.json").exists(), "{name}");
        assert_eq!(case.rows.len(), label_rows(&case.labels), "{name}");
        if name.ends_with("-trajectory") {
            let hyper = case.hyper.as_ref().unwrap();
            assert_eq!(case.steps.len(), hyper.num_steps, "{name}");
            assert!(
                case.adapter_final_dir()
                    .unwrap()
                    .join("adapter_model.safetensors")
                    .exists()
            );
            continue;
        }
        let outputs = match case.task.as_str() {
            "token_classification" | "causal_lm" => {
                case.rows.iter().map(|r| r.input_ids.len()).sum()
            }
            _ => case.rows.len(),
        };
        assert_eq!(case.logits().shape[0], outputs, "{name}");
        // A language model's outputs are its vocabulary.
        if case.task != "causal_lm" {
            assert_eq!(case.logits().shape[1], case.num_labels, "{name}");
        }
        assert_eq!(
            case.logits_base().is_none(),
            !case.load.new.is_empty(),
            "{name}"
        );
        assert_eq!(case.grads().count(), case.trainable.len(), "{name}");
        assert!(case.loss > 0.0, "{name}");
    }
}

fn label_rows(labels: &Labels) -> usize {
    match labels {
        Labels::Classes(rows) => rows.len(),
        Labels::Values(rows) => rows.len(),
        Labels::Tokens(rows) => rows.len(),
        Labels::Multi(rows) => rows.len(),
    }
}

#[test]
fn labels_are_read_as_their_tasks() {
    let labels = |name: &str| Golden::open(name).unwrap().labels;
    assert!(matches!(labels("bert-single-label"), Labels::Classes(_)));
    assert!(matches!(labels("bert-regression"), Labels::Values(_)));
    assert!(matches!(
        labels("bert-token-classification"),
        Labels::Tokens(_)
    ));
    assert!(matches!(labels("bert-multi-label"), Labels::Multi(_)));
}

#[test]
fn a_gradient_with_one_wrong_element_fails() {
    for name in [
        "bert-single-label",
        "bert-bias-all",
        "bert-full",
        "roberta-full",
    ] {
        let case = Golden::open(name).unwrap();
        for (key, tensor) in case.grads() {
            case.compare_grad(key, &tensor.data, 1e-5).unwrap();
            let norm = tensor
                .data
                .iter()
                .map(|v| f64::from(*v).powi(2))
                .sum::<f64>()
                .sqrt();
            let mut off = tensor.data.clone();
            if case.zero_gradient.iter().any(|zero| zero == key) {
                off[0] += 1.0;
            } else {
                off[0] += (2e-5 * norm) as f32;
            }
            case.compare_grad(key, &off, 1e-5).unwrap_err();
            off[0] = f32::NAN;
            case.compare_grad(key, &off, 1e-5).unwrap_err();
        }
    }
}

#[test]
fn the_adapter_changes_every_case() {
    // Else a golden would also pass for a program that ignores the adapter.
    for name in Golden::names().unwrap() {
        let case = Golden::open(&name).unwrap();
        let (Some(base), true) = (case.logits_base(), case.adapter_dir().is_some()) else {
            continue;
        };
        let largest = base
            .data
            .iter()
            .zip(&case.logits().data)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(largest > 1e-2, "{name}: {largest}");
    }
}

#[test]
fn the_saved_keys_are_the_trained_ones() {
    for name in Golden::names().unwrap() {
        let case = Golden::open(&name).unwrap();
        let Some(dir) = case.adapter_dir() else {
            continue;
        };
        let file = dir.join("adapter_model.safetensors");
        if !file.exists() || !case.steps.is_empty() {
            continue;
        }
        let mut saved: Vec<_> = read_safetensors(&file).unwrap().into_keys().collect();
        saved.retain(|key| !case.saved_by_peft_but_not_trained.contains(key));
        saved.extend(case.trained_but_not_saved_by_peft.iter().cloned());
        // PEFT has no BitFit: its files have the model's own names.
        let config = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
        if config.contains("\"BITFIT\"") {
            for key in &mut saved {
                key.insert_str(0, "base_model.model.");
            }
        }
        saved.sort();
        assert_eq!(saved, case.trainable, "{name}");
    }
}

#[test]
fn number_files_are_there() {
    assert!(
        read_golden_json("schedules.json").unwrap()["rows"]
            .as_array()
            .unwrap()
            .len()
            > 20
    );
    assert!(
        !read_golden_json("metrics.json").unwrap()["classification"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        read_golden_json("adamw.json").unwrap()["runs"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}
