//! PEFT's files: configurations and tensors that Python's peft wrote come back byte for byte, and
//! names match as they do there.
#![expect(clippy::too_many_lines, reason = "a test is one story, told in order")]

mod common;

use std::path::Path;

use common::{fixture, for_each_damage, json, names, scratch};
use lowrank_formats::peft::{
    AdapterFile, Bias, InitLoraWeights, LayersToTransform, LoraConfig, Loralib, Matcher,
    NamePattern, ParameterKind, PeftCompat, TargetModules, TaskType, minimal_target_modules,
    parse_key, write_adapter,
};
use lowrank_formats::{DType, FormatError, OutTensor, write_safetensors};
use serde_json::Value;

fn variants() -> Vec<String> {
    names(&fixture("peft"))
        .into_iter()
        .filter(|name| fixture("peft").join(name).is_dir())
        .collect()
}

fn config_of(text: &str) -> Result<LoraConfig, FormatError> {
    LoraConfig::from_bytes(Path::new("adapter_config.json"), text.as_bytes().to_vec())
}

fn strings(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn every_adapter_of_peft_comes_back_byte_for_byte() {
    let variants = variants();
    assert_eq!(variants.len(), 17);
    for name in variants {
        let dir = fixture("peft").join(&name);
        let text = std::fs::read(dir.join("adapter_config.json")).unwrap();
        let config = LoraConfig::read(&dir).unwrap();
        assert_eq!(config.to_bytes(), text, "{name}");

        let out = scratch("peft_same").join(&name);
        let file = AdapterFile::read(&dir).unwrap();
        let tensors: Vec<(&str, &[usize], &[f32])> = file
            .iter()
            .map(|(key, tensor)| (key, tensor.shape.as_slice(), tensor.data.as_slice()))
            .collect();
        write_adapter(&out, &config.into(), &tensors).unwrap();
        assert_eq!(
            names(&out),
            ["adapter_config.json", "adapter_model.safetensors"]
        );
        assert_eq!(
            std::fs::read(out.join("adapter_config.json")).unwrap(),
            text,
            "{name}"
        );
        // The pickled one is that of `default` after a loading and a saving, so its tensors are
        // too.
        let source = if name == "default_bin" {
            "default"
        } else {
            &name
        };
        let weights = fixture("peft")
            .join(source)
            .join("adapter_model.safetensors");
        let weights = std::fs::read(weights).unwrap();
        assert_eq!(
            std::fs::read(out.join("adapter_model.safetensors")).unwrap(),
            weights,
            "{name}"
        );
        file.write(&out.join("again")).unwrap();
        assert_eq!(std::fs::read(out.join("again")).unwrap(), weights, "{name}");
    }
}

/// What the file says, written anew from our fields alone, must be what PEFT wrote: names, order,
/// numbers and escapes.
#[test]
fn a_new_configuration_has_the_bytes_that_peft_writes() {
    for name in variants() {
        let dir = fixture("peft").join(&name);
        let read = LoraConfig::read(&dir).unwrap();
        let text = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
        // The two fields that we keep but do not have.
        if read.raw("use_dora") == Some(&Value::Bool(true)) || name == "no_task" {
            continue;
        }
        let new = LoraConfig {
            kept: lowrank_formats::peft::Kept::default(),
            ..read
        };
        let text = match name.as_str() {
            // PEFT wrote the head's names twice here; a name counts once.
            "default_bin" => text.replace(
                "    \"score\",\n    \"classifier\",\n    \"score\"\n",
                "    \"score\"\n",
            ),
            "to_save" => text.replace(
                "    \"intermediate.dense\",\n    \"classifier\",\n    \"score\"\n",
                "    \"intermediate.dense\",\n    \"score\"\n",
            ),
            // PEFT keeps what was given: one name, one layer, a lone pattern.
            "layers" => text.replace(
                "\"layers_pattern\": \"layer\"",
                "\"layers_pattern\": [\n    \"layer\"\n  ]",
            ),
            _ => text,
        };
        assert_eq!(String::from_utf8(new.to_bytes()).unwrap(), text, "{name}");
    }
}

#[test]
fn the_fields_are_read() {
    let read = |name: &str| LoraConfig::read(&fixture("peft").join(name)).unwrap();
    let config = read("rank_pattern");
    assert_eq!(config.r, 2);
    // Files are sorted by pattern, so that is the order that counts.
    let ranks: Vec<(&str, usize)> = config
        .rank_pattern
        .iter()
        .map(|(name, rank)| (name.as_str(), *rank))
        .collect();
    assert_eq!(
        ranks,
        [
            ("layer.1.attention.self.query", 3),
            (r"layer\.0\..*dense", 4),
            ("value", 1)
        ]
    );
    assert_eq!(
        config.alpha_pattern,
        [
            (r".*\.1\..*value".to_owned(), 2.5),
            ("query".to_owned(), 32.0)
        ]
    );
    assert_eq!(config.task_type, Some(TaskType::SequenceClassification));
    assert_eq!(
        config.modules_to_save,
        Some(vec!["classifier".to_owned(), "score".to_owned()])
    );
    assert_eq!(config.peft_version.as_deref(), Some("0.21.2"));
    assert!(config.inference_mode);
    let config = read("rslora");
    assert!(config.use_rslora);
    assert_eq!((config.lora_alpha, config.lora_dropout), (16.0, 0.05));
    assert!(matches!(
        read("regex").target_modules,
        Some(TargetModules::Regex(_))
    ));
    assert!(matches!(
        read("exclude").exclude_modules,
        Some(NamePattern::Regex(_))
    ));
    assert_eq!(
        read("layers").layers_to_transform,
        Some(LayersToTransform::Many(vec![1]))
    );
    assert_eq!(
        read("layers").layers_pattern,
        Some(vec!["layer".to_owned()])
    );
    assert_eq!(
        read("one_layer").layers_to_transform,
        Some(LayersToTransform::One(0))
    );
    assert_eq!(
        read("one_layer").task_type,
        Some(TaskType::TokenClassification)
    );
    assert_eq!(read("bias_all").bias, Bias::All);
    assert_eq!(read("bias_lora_only").bias, Bias::LoraOnly);
    assert_eq!(
        read("gaussian").init_lora_weights,
        InitLoraWeights::Gaussian
    );
    assert_eq!(read("gaussian").lora_dropout, 1e-5);
    assert_eq!(
        read("random_init").init_lora_weights,
        InitLoraWeights::Random
    );
    assert_eq!(read("random_init").lora_alpha, 0.5);
    assert_eq!(
        read("text").base_model_name_or_path.as_deref(),
        Some("chemin/é 😀 \"x\"\\y")
    );
    assert_eq!(read("no_task").task_type, None);
    assert!(read("no_task").raw("auto_mapping").unwrap().is_object());
    // Saved again after loading, PEFT appends the head's names again; each counts once.
    assert_eq!(
        read("default_bin").modules_to_save,
        read("default").modules_to_save
    );
    for name in variants() {
        let config = read(&name);
        let unsupported: Vec<String> = config
            .unsupported_fields()
            .iter()
            .map(ToString::to_string)
            .collect();
        let expected: &[&str] = if name == "dora" {
            &["use_dora: `true` is not supported"]
        } else {
            &[]
        };
        assert_eq!(unsupported, expected, "{name}");
        assert!(config.unknown_fields().is_empty(), "{name}");
    }
}

/// Ranks, scalings and wrapped modules of every variant, as the model that PEFT made of it has
/// them.
#[test]
fn the_adapted_layers_are_those_of_peft() {
    let expected = json("peft/expected.json");
    for (name, expected) in expected.as_object().unwrap() {
        let mut config = LoraConfig::read(&fixture("peft").join(name)).unwrap();
        let check = |config: &LoraConfig| {
            let matcher = Matcher::new(config).unwrap();
            let mut layers = serde_json::Map::new();
            for path in strings(&expected["linear"]) {
                if matcher.is_target(&path).unwrap() {
                    let (rank, alpha) =
                        (matcher.rank(&path).unwrap(), matcher.alpha(&path).unwrap());
                    let scaling = matcher.scaling(&path).unwrap();
                    layers.insert(path, serde_json::json!([rank as f64, alpha, scaling]));
                }
            }
            let as_floats =
                |value: &Value| -> Vec<f64> { serde_json::from_value(value.clone()).unwrap() };
            let wanted = expected["layers"].as_object().unwrap();
            assert_eq!(
                layers.keys().collect::<Vec<_>>(),
                wanted.keys().collect::<Vec<_>>(),
                "{name}"
            );
            for (path, layer) in wanted {
                assert_eq!(as_floats(&layers[path]), as_floats(layer), "{name} {path}");
            }
            let saved: Vec<String> = strings(&expected["modules"])
                .into_iter()
                .filter(|path| matcher.is_module_to_save(path))
                .collect();
            assert_eq!(saved, strings(&expected["saved"]), "{name}");
            let linear = strings(&expected["linear"]);
            let all = strings(&expected["modules"]);
            let linear: Vec<&str> = linear.iter().map(String::as_str).collect();
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            assert_eq!(matcher.unmatched(&linear, &all).unwrap(), [], "{name}");
        };
        check(&config);
        if name == "all_linear" {
            // The names that PEFT put in the file, and the word itself, mean the same layers.
            assert!(matches!(
                config.target_modules,
                Some(TargetModules::List(_))
            ));
            config.target_modules = Some(TargetModules::AllLinear);
            check(&config);
        }
        let file = AdapterFile::read(&fixture("peft").join(name)).unwrap();
        for (path, _) in expected["layers"].as_object().unwrap() {
            assert!(
                file.get(&format!("base_model.model.{path}.lora_A.weight"))
                    .is_some(),
                "{name} {path}"
            );
        }
    }
}

#[test]
fn names_match_as_in_peft() {
    let matching = json("matching.json");
    let paths = strings(&matching["paths"]);
    for case in matching["targets"].as_array().unwrap() {
        let mut object = case["config"].clone();
        object["peft_type"] = "LORA".into();
        let config = LoraConfig::from_value(Path::new("x"), &object).unwrap();
        let matcher = Matcher::new(&config).unwrap();
        let found: Vec<String> = paths
            .iter()
            .filter(|path| matcher.is_target(path).unwrap())
            .cloned()
            .collect();
        assert_eq!(found, strings(&case["matches"]), "{}", case["config"]);
    }
    for case in matching["keys"].as_array().unwrap() {
        let patterns = strings(&case["patterns"]);
        let config = LoraConfig {
            r: 1000,
            rank_pattern: patterns.iter().cloned().zip(0..).collect(),
            target_modules: Some(TargetModules::AllLinear),
            ..LoraConfig::default()
        };
        let matcher = Matcher::new(&config).unwrap();
        for (path, expected) in paths.iter().zip(case["found"].as_array().unwrap()) {
            let expected = expected.as_u64().map_or(1000, |index| index as usize);
            assert_eq!(
                matcher.rank(path).unwrap(),
                expected,
                "{path} in {patterns:?}"
            );
        }
    }
    for case in matching["minimal"].as_array().unwrap() {
        let (targets, others) = (strings(&case["targets"]), strings(&case["others"]));
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        assert_eq!(
            minimal_target_modules(&targets, &others),
            strings(&case["minimal"]),
            "{targets:?}"
        );
    }
}

#[test]
fn a_pattern_that_matches_nothing_is_told_with_the_nearest_name() {
    let config = config_of(
        r#"{"peft_type":"LORA","target_modules":["query","vlaue"],"exclude_modules":["nothing"],
            "rank_pattern":{"kee":2},"alpha_pattern":{"query":1},"modules_to_save":["classifer","score"],
            "layers_to_transform":[0,7]}"#,
    )
    .unwrap();
    let linear = [
        "enc.layer.0.query",
        "enc.layer.0.value",
        "enc.layer.1.query",
    ];
    let all = [
        "enc.layer.0.query",
        "enc.layer.0.value",
        "enc.layer.1.query",
        "classifier",
    ];
    let unmatched = Matcher::new(&config)
        .unwrap()
        .unmatched(&linear, &all)
        .unwrap();
    let lines: Vec<String> = unmatched
        .iter()
        .map(|pattern| pattern.to_fault().to_string())
        .collect();
    assert_eq!(
        lines,
        [
            "target_modules: `vlaue` matches no module; did you mean `value`?",
            "exclude_modules: `nothing` matches no module",
            "layers_to_transform: `7` matches no module",
            "rank_pattern: `kee` matches no module",
            "modules_to_save: `classifer` matches no module; did you mean `classifier`?",
        ]
    );
    let regex = config_of(r#"{"peft_type":"LORA","target_modules":"querry"}"#).unwrap();
    let unmatched = Matcher::new(&regex)
        .unwrap()
        .unmatched(&linear, &all)
        .unwrap();
    assert_eq!(
        unmatched[0].to_fault().to_string(),
        "target_modules: `querry` matches no module; did you mean `query`?"
    );
}

#[test]
fn a_pattern_that_does_not_parse_is_told() {
    for (field, pattern) in [
        ("target_modules", "a)|(b"),
        ("exclude_modules", "(a"),
        ("target_modules", "[a"),
    ] {
        let text =
            format!(r#"{{"peft_type":"LORA","target_modules":["x"],"{field}":"{pattern}"}}"#);
        let error = Matcher::new(&config_of(&text).unwrap()).unwrap_err();
        let start = format!("`{field}` holds a pattern that cannot be used: `{pattern}`: ");
        assert!(error.to_string().starts_with(&start), "{error}");
        assert!(
            error.to_string().len() > start.len() && !error.to_string().contains('\n'),
            "{error}"
        );
        assert!(error.hint().is_some());
    }
    let none = config_of(r#"{"peft_type":"LORA"}"#).unwrap();
    assert!(
        Matcher::new(&none)
            .unwrap_err()
            .to_string()
            .contains("target_modules: missing")
    );
    // A pattern that could take for ever is an error, not a hang.
    let slow =
        config_of(r#"{"peft_type":"LORA","target_modules":"(?:(?=a)a|(?=a)aa)*c"}"#).unwrap();
    let matcher = Matcher::new(&slow).unwrap();
    assert!(matcher.is_target(&"a".repeat(200)).is_err());
}

#[test]
fn every_fault_of_a_configuration_is_reported_at_once() {
    let error = config_of(
        r#"{"peft_type":"LORA","r":0,"lora_alpha":"x","lora_dropout":1.5,"bias":"lora_olny","target_modules":[1],
            "rank_pattern":{"q":0},"alpha_pattern":[],"init_lora_weights":3,"task_type":"SEQ_CLASS","layers_to_transform":"all",
            "layers_pattern":["h"],"use_rslora":1,"modules_to_save":"classifier"}"#,
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "`adapter_config.json` has 13 faults
  r: expected an integer from 1 to 1048576, found `0`
  lora_alpha: expected a number, found `\"x\"`
  lora_dropout: expected a number from 0 to 1, found `1.5`
  target_modules: expected a list of text, found `[1]`
  layers_to_transform: expected an integer or a list of them, found `\"all\"`
  rank_pattern.q: expected an integer from 1 on, found `0`
  alpha_pattern: expected an object, found `[]`
  bias: expected one of `none`, `all`, `lora_only`, found `lora_olny`; did you mean `lora_only`?
  use_rslora: expected true or false, found `1`
  init_lora_weights: expected true, false or the name of a method, found `3`
  modules_to_save: expected a list of text, found `\"classifier\"`
  task_type: expected one of `SEQ_CLS`, `SEQ_2_SEQ_LM`, `CAUSAL_LM`, `TOKEN_CLS`, `QUESTION_ANS`, `FEATURE_EXTRACTION`, found `SEQ_CLASS`; did you mean `SEQ_CLS`?
  layers_pattern: needs `layers_to_transform` beside it"
    );
    let error = config_of(
        r#"{"peft_type":"LORA","target_modules":"all-linear","layers_to_transform":[1],"layers_pattern":"h"}"#,
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "`adapter_config.json` has 2 faults
  layers_to_transform: cannot be used when `target_modules` is a pattern
  layers_pattern: cannot be used when `target_modules` is a pattern"
    );
}

#[test]
fn other_files_are_told_apart() {
    let message = |text: &str| config_of(text).unwrap_err().to_string();
    assert_eq!(
        message(r#"{"peft_type":"IA3"}"#),
        "`adapter_config.json` is an adapter of type `IA3`, expected `LORA`"
    );
    assert_eq!(
        message(r#"{"fine_tune_type":"lora"}"#),
        "`adapter_config.json` is an adapter of type `an mlx-lm adapter`, expected `LORA`"
    );
    assert_eq!(
        message("[]"),
        "`adapter_config.json` has a fault\n  (whole file): expected a JSON object"
    );
    assert_eq!(
        message(""),
        "`adapter_config.json` is not valid JSON: the file is empty (line 1, column 1)"
    );
    assert_eq!(
        message("{\n  \"r\": 8,\n}"),
        "`adapter_config.json` is not valid JSON: trailing comma (line 3, column 1)"
    );
}

#[test]
fn unset_keys_have_pefts_defaults_and_set_ones_are_kept() {
    let config = config_of(r#"{"peft_type": "LORA", "r": 4}"#).unwrap();
    assert_eq!(
        (config.r, config.lora_alpha, config.lora_dropout),
        (4, 8.0, 0.0)
    );
    assert!(!config.inference_mode);
    assert_eq!(config.to_bytes(), br#"{"peft_type": "LORA", "r": 4}"#);
    let changed = LoraConfig { r: 16, ..config };
    assert_eq!(
        String::from_utf8(changed.to_bytes()).unwrap(),
        "{\n  \"peft_type\": \"LORA\",\n  \"r\": 16\n}"
    );
    let odd = r#"{"peft_type":"LORA","lora_dropout":0,"lora_alpha":16.0,"future":[1],"megatron_core":"x","layer_replication":[[0,2]],"init_lora_weights":"pissa_niter_4"}"#;
    let config = config_of(odd).unwrap();
    assert_eq!(config.unknown_fields(), ["future"]);
    let unsupported: Vec<String> = config
        .unsupported_fields()
        .iter()
        .map(|fault| fault.place.clone())
        .collect();
    assert_eq!(unsupported, ["layer_replication", "init_lora_weights"]);
    let changed = LoraConfig {
        lora_alpha: 32.0,
        ..config
    };
    let text = String::from_utf8(changed.to_bytes()).unwrap();
    assert!(
        text.contains("\"lora_dropout\": 0,\n") && text.contains("\"lora_alpha\": 32,\n"),
        "{text}"
    );
    assert!(text.contains("\"future\": [\n    1\n  ]"), "{text}");
}

#[test]
fn an_older_peft_is_given_only_keys_that_it_knows() {
    let keys = |config: &LoraConfig, compat| {
        let value: Value = serde_json::from_slice(&config.to_bytes_for(compat)).unwrap();
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    let config = LoraConfig::default();
    assert_eq!(keys(&config, PeftCompat::Current).len(), 41);
    assert_eq!(keys(&config, PeftCompat::Minor(20)).len(), 40);
    assert!(!keys(&config, PeftCompat::Minor(17)).contains(&"peft_version".to_owned()));
    let minimal = keys(&config, PeftCompat::Minimal);
    assert!(!minimal.contains(&"use_rslora".to_owned()) && minimal.contains(&"r".to_owned()));
    let rslora = LoraConfig {
        use_rslora: true,
        ..config
    };
    assert!(keys(&rslora, PeftCompat::Minimal).contains(&"use_rslora".to_owned()));
}

#[test]
fn keys_say_what_they_are_for() {
    let cases = [
        (
            "base_model.model.a.b.lora_A.weight",
            Some(("a.b", ParameterKind::LoraA)),
        ),
        (
            "base_model.model.a.lora_B.weight",
            Some(("a", ParameterKind::LoraB)),
        ),
        (
            "base_model.model.a.lora_B.bias",
            Some(("a", ParameterKind::LoraBBias)),
        ),
        (
            "base_model.model.e.lora_embedding_A",
            Some(("e", ParameterKind::EmbeddingA)),
        ),
        (
            "base_model.model.a.lora_magnitude_vector",
            Some(("a", ParameterKind::Magnitude)),
        ),
        (
            "base_model.model.classifier.dense.weight",
            Some(("classifier.dense.weight", ParameterKind::Full)),
        ),
        ("classifier.dense.weight", None),
    ];
    for (key, expected) in cases {
        assert_eq!(parse_key(key), expected);
    }
}

#[test]
fn an_adapter_whose_pairs_do_not_fit_is_refused_with_all_faults() {
    let path = scratch("peft_pairs").join("x.safetensors");
    let data = [0.0f32; 8];
    let key = |name: &str| format!("base_model.model.{name}.weight");
    let (a, b, lone) = (key("m.lora_A"), key("m.lora_B"), key("n.lora_B"));
    let tensors = [
        OutTensor::f32(&a, &[2, 4], &data),
        OutTensor::f32(&b, &[2, 4], &data),
        OutTensor::f32(&lone, &[4, 2], &data),
    ];
    write_safetensors(&path, &tensors, &[]).unwrap();
    assert_eq!(
        AdapterFile::read(&path).unwrap_err().to_string(),
        format!(
            "`{}` is not a usable adapter
  base_model.model.m.lora_A.weight: its shape is [2, 4] and its partner's [2, 4]: the ranks differ
  base_model.model.n.lora_B.weight: its partner `n.lora_A.weight` is missing",
            path.display()
        )
    );
    let empty = scratch("peft_empty");
    let error = AdapterFile::read(&empty).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "`{}` holds none of `adapter_model.safetensors`, `adapter_model.bin`",
            empty.display()
        )
    );
    assert!(
        LoraConfig::read(&empty)
            .unwrap_err()
            .to_string()
            .ends_with("holds none of `adapter_config.json`")
    );
}

#[test]
fn half_precision_adapters_are_widened_and_written_as_they_were() {
    let dir = scratch("peft_half");
    let halves: Vec<u8> = [1.5f32, -0.1, 3.0, 65504.0]
        .iter()
        .flat_map(|&value| half::bf16::from_f32(value).to_le_bytes())
        .collect();
    let tensor = |name, shape| OutTensor {
        name,
        dtype: DType::BF16,
        shape,
        bytes: halves.as_slice().into(),
    };
    let (a, b) = (
        "base_model.model.x.lora_A.weight",
        "base_model.model.x.lora_B.weight",
    );
    let path = dir.join("half.safetensors");
    write_safetensors(
        &path,
        &[tensor(a, &[2, 2]), tensor(b, &[2, 2])],
        &[("format".into(), "pt".into())],
    )
    .unwrap();
    let file = AdapterFile::read(&path).unwrap();
    assert_eq!(file.get(a).unwrap().data[0], 1.5);
    file.write(&dir.join("again")).unwrap();
    assert_eq!(
        std::fs::read(dir.join("again")).unwrap(),
        std::fs::read(&path).unwrap()
    );
}

/// One adapter per value, so that files of two saves cannot be mistaken.
fn save(dir: &Path, value: usize) {
    let data = vec![value as f32; 4];
    let config = LoraConfig {
        r: 2,
        lora_alpha: value as f64,
        ..LoraConfig::default()
    };
    let (a, b) = (
        "base_model.model.x.lora_A.weight",
        "base_model.model.x.lora_B.weight",
    );
    write_adapter(
        dir,
        &config.into(),
        &[(a, &[2, 2], &data), (b, &[2, 2], &data)],
    )
    .unwrap();
}

fn saved(dir: &Path) -> (f64, f64) {
    let config = LoraConfig::read(dir).unwrap();
    let file = AdapterFile::read(dir).unwrap();
    let value = file.iter().next().unwrap().1.data[0];
    (config.lora_alpha, f64::from(value))
}

/// A save that is killed between any two of its steps leaves the old pair or the new pair, never
/// one of each.
#[test]
fn a_killed_save_never_mixes_old_and_new() {
    let new = scratch("peft_killed_new");
    save(&new, 2);
    let copy =
        |name: &str, dir: &Path, to: &str| std::fs::copy(new.join(name), dir.join(to)).unwrap();
    let weights = "adapter_model.safetensors";
    let config = "adapter_config.json";
    for steps in 0..=5 {
        let dir = scratch("peft_killed");
        save(&dir, 1);
        if steps >= 1 {
            copy(weights, &dir, ".adapter_model.safetensors.next");
        }
        if steps >= 2 {
            copy(config, &dir, ".adapter_config.json.next");
        }
        if steps >= 3 {
            std::fs::write(dir.join(".adapter.commit"), b"").unwrap();
        }
        if steps >= 4 {
            std::fs::rename(
                dir.join(".adapter_model.safetensors.next"),
                dir.join(weights),
            )
            .unwrap();
        }
        if steps >= 5 {
            std::fs::rename(dir.join(".adapter_config.json.next"), dir.join(config)).unwrap();
        }
        let expected = if steps >= 3 { (2.0, 2.0) } else { (1.0, 1.0) };
        assert_eq!(saved(&dir), expected, "after {steps} steps");
        save(&dir, 3);
        assert_eq!(saved(&dir), (3.0, 3.0), "after {steps} steps");
        assert_eq!(names(&dir), [config, weights]);
    }
}

#[test]
fn a_save_that_fails_leaves_what_was_there() {
    let dir = scratch("peft_fails");
    save(&dir, 1);
    std::fs::write(dir.join("README.md"), "mine").unwrap();
    let data = [0.0f32; 3];
    let error = write_adapter(
        &dir,
        &LoraConfig::default().into(),
        &[("k", &[2, 2], &data)],
    )
    .unwrap_err();
    assert!(matches!(error, FormatError::Unwritable { .. }));
    assert_eq!(saved(&dir), (1.0, 1.0));
    assert_eq!(
        names(&dir),
        [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors"
        ]
    );
    // A file where the folder should be.
    let error =
        write_adapter(&dir.join("README.md"), &LoraConfig::default().into(), &[]).unwrap_err();
    assert!(error.to_string().starts_with("cannot create"), "{error}");
}

#[test]
fn damaged_configurations_are_errors_but_never_panics() {
    let bytes = std::fs::read(fixture("peft/rank_pattern/adapter_config.json")).unwrap();
    for_each_damage(&bytes, bytes.len(), |damaged| {
        if let Ok(config) = LoraConfig::from_bytes(Path::new("x"), damaged.clone()) {
            assert_eq!(config.to_bytes(), damaged);
            let _ = Matcher::new(&config);
        }
    });
}

#[test]
fn a_loralib_checkpoint_gets_pefts_names() {
    let dir = scratch("loralib");
    let path = dir.join("x.safetensors");
    let data = [0.5f32; 24];
    let tensors = [
        OutTensor::f32("enc.0.query.lora_A", &[2, 4], &data[..8]),
        OutTensor::f32("enc.0.query.lora_B", &[4, 2], &data[..8]),
        OutTensor::f32("enc.1.query.lora_A", &[2, 4], &data[..8]),
        OutTensor::f32("enc.1.query.lora_B", &[4, 2], &data[..8]),
        OutTensor::f32("enc.1.value.lora_A", &[3, 4], &data[..12]),
        OutTensor::f32("enc.1.value.lora_B", &[4, 3], &data[..12]),
        OutTensor::f32("classifier.weight", &[3, 4], &data[..12]),
    ];
    write_safetensors(&path, &tensors, &[]).unwrap();
    let loralib = Loralib::read(&path).unwrap();
    assert_eq!(loralib.target_modules, ["query", "value"]);
    assert_eq!(loralib.modules_to_save, ["classifier"]);
    assert!(
        loralib
            .tensors
            .get("base_model.model.enc.1.value.lora_B.weight")
            .is_some()
    );
    assert!(
        loralib
            .tensors
            .get("base_model.model.classifier.weight")
            .is_some()
    );
    let config = loralib.config(16.0);
    assert_eq!((config.r, config.lora_alpha), (2, 16.0));
    let matcher = Matcher::new(&config).unwrap();
    assert_eq!(matcher.rank("enc.0.query").unwrap(), 2);
    assert_eq!(matcher.rank("enc.1.value").unwrap(), 3);

    let fused = [
        OutTensor::f32("h.c_attn.lora_A", &[4, 4], &data[..16]),
        OutTensor::f32("h.c_attn.lora_B", &[20, 1], &data[..20]),
        OutTensor::f32("h.other.lora_A", &[2, 4], &data[..8]),
    ];
    write_safetensors(&path, &fused, &[]).unwrap();
    assert_eq!(
        Loralib::read(&path).unwrap_err().to_string(),
        format!(
            "`{}` is not a usable adapter
  h.c_attn.lora_A: A has 4 rows and B takes 1: a fused layer (loralib's `MergedLinear`) of 4 parts is not supported
  h.other.lora_A: its partner `h.other.lora_B` is missing",
            path.display()
        )
    );
}
