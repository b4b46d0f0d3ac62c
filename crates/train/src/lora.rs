//! Between a run's adapter settings and PEFT's configuration.

use lowrank_formats::peft::{
    Bias, InitLoraWeights, LayersToTransform, LoraConfig, NamePattern, TargetModules, TokenIndices,
};

use crate::config::{BiasMode, InitLora, LoraSettings, ModulePattern};

impl LoraSettings {
    // The configuration has private fields (what it was read from), so no struct expression can
    // build it here.
    #[allow(clippy::field_reassign_with_default)]
    /// The configuration that PEFT would be given; `model` is what the file names as its base.
    pub fn to_peft(&self, model: &str, revision: Option<&str>) -> LoraConfig {
        let mut config = LoraConfig::default();
        config.r = self.r;
        config.lora_alpha = self.lora_alpha;
        config.lora_dropout = self.lora_dropout;
        config.target_modules = Some(match &self.target_modules {
            ModulePattern::Text(text) if text == "all-linear" => TargetModules::AllLinear,
            ModulePattern::Text(regex) => TargetModules::Regex(regex.clone()),
            ModulePattern::Names(names) => TargetModules::List(names.clone()),
        });
        config.exclude_modules = self.exclude_modules.as_ref().map(|pattern| match pattern {
            ModulePattern::Text(regex) => NamePattern::Regex(regex.clone()),
            ModulePattern::Names(names) => NamePattern::List(names.clone()),
        });
        let layers = self.layers_to_transform.as_ref();
        config.layers_to_transform =
            layers.map(|l| LayersToTransform::Many(l.iter().map(|&i| i as i64).collect()));
        config.layers_pattern = self.layers_pattern.clone();
        config.rank_pattern = self
            .rank_pattern
            .iter()
            .map(|(k, &v)| (k.clone(), v))
            .collect();
        config.alpha_pattern = self
            .alpha_pattern
            .iter()
            .map(|(k, &v)| (k.clone(), v))
            .collect();
        config.bias = match self.bias {
            BiasMode::None => Bias::None,
            BiasMode::All => Bias::All,
            BiasMode::LoraOnly => Bias::LoraOnly,
        };
        config.use_rslora = self.use_rslora;
        config.init_lora_weights = match self.init_lora_weights {
            InitLora::Default => InitLoraWeights::Default,
            InitLora::Gaussian => InitLoraWeights::Gaussian,
            InitLora::Random => InitLoraWeights::Random,
        };
        config.modules_to_save =
            (!self.modules_to_save.is_empty()).then(|| self.modules_to_save.clone());
        config.trainable_token_indices = (!self.trainable_token_indices.is_empty())
            .then(|| TokenIndices::Input(self.trainable_token_indices.clone()));
        config.base_model_name_or_path = Some(model.to_owned());
        config.revision = revision.map(str::to_owned);
        config
    }

    /// The settings of an existing adapter. How it was initialised no longer matters and is given
    /// as the default.
    pub fn from_peft(config: &LoraConfig) -> Self {
        let layers = config.layers_to_transform.as_ref();
        Self {
            r: config.r,
            lora_alpha: config.lora_alpha,
            lora_dropout: config.lora_dropout,
            target_modules: match &config.target_modules {
                None => ModulePattern::Names(Vec::new()),
                Some(TargetModules::AllLinear) => ModulePattern::Text("all-linear".to_owned()),
                Some(TargetModules::Regex(regex)) => ModulePattern::Text(regex.clone()),
                Some(TargetModules::List(names)) => ModulePattern::Names(names.clone()),
            },
            exclude_modules: config
                .exclude_modules
                .as_ref()
                .map(|pattern| match pattern {
                    NamePattern::Regex(regex) => ModulePattern::Text(regex.clone()),
                    NamePattern::List(names) => ModulePattern::Names(names.clone()),
                }),
            layers_to_transform: layers.map(|l| {
                l.indices()
                    .iter()
                    .filter_map(|&i| usize::try_from(i).ok())
                    .collect()
            }),
            layers_pattern: config.layers_pattern.clone(),
            rank_pattern: config.rank_pattern.iter().cloned().collect(),
            alpha_pattern: config.alpha_pattern.iter().cloned().collect(),
            bias: match config.bias {
                Bias::None => BiasMode::None,
                Bias::All => BiasMode::All,
                Bias::LoraOnly => BiasMode::LoraOnly,
            },
            use_rslora: config.use_rslora,
            init_lora_weights: InitLora::Default,
            modules_to_save: config.modules_to_save.clone().unwrap_or_default(),
            trainable_token_indices: match &config.trainable_token_indices {
                None => Vec::new(),
                Some(TokenIndices::Input(ids)) => ids.clone(),
                // Settings name no tables: an adapter with several keeps them in its own file.
                Some(TokenIndices::ByModule(tables)) => {
                    let first = tables.first();
                    first.map(|(_, ids)| ids.clone()).unwrap_or_default()
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::example;
    use crate::config::{LoraSettings, ModulePattern};

    #[test]
    fn settings_survive_the_way_through_peft() {
        let mut settings = example().lora;
        settings.rank_pattern.insert("layer.0".to_owned(), 4);
        settings.trainable_token_indices = vec![7, 3];
        settings.layers_to_transform = Some(vec![0, 2]);
        settings.exclude_modules = Some(ModulePattern::Text(".*key".to_owned()));
        let config = settings.to_peft("base", None);
        assert_eq!(config.base_model_name_or_path.as_deref(), Some("base"));
        assert_eq!(LoraSettings::from_peft(&config), settings);
        settings.target_modules = ModulePattern::Text("all-linear".to_owned());
        assert_eq!(
            LoraSettings::from_peft(&settings.to_peft("base", None)),
            settings
        );
    }
}
