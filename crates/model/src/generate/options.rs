//! What is generated and how: the settings of a call with their ranges. Where they come from, a
//! file or flags, is the business of `config.rs`.

use crate::adapters::AdapterSlot;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Search {
    /// The most probable one.
    Greedy,
    /// One drawn at random.
    Sample(Sampling),
    /// The best sequence of several that are followed. Source: transformers
    /// `GenerationMixin._beam_search`.
    Beam(BeamSearch),
}

/// What is drawn from. The filters work one after the other, in the order of the fields.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; above 0.
    pub temperature: f32,
    /// Only the most probable tokens whose entropy is at most this share of the whole; above 0, at
    /// most 1.
    pub top_h: Option<f32>,
    /// Only this many of the most probable tokens; at least 1.
    pub top_k: Option<usize>,
    /// Only the fewest tokens whose probabilities sum to this; from 0, which leaves the most
    /// probable one, to 1.
    pub top_p: f32,
    /// Only tokens of at least this share of the most probable one's probability; from 0, which
    /// leaves all, to 1.
    pub min_p: f32,
    /// Only the tokens nearest to the expected information whose probabilities sum to this; above
    /// 0, at most 1.
    pub typical_p: f32,
    /// Only tokens of at least this probability; from 0 to below 1.
    pub epsilon_cutoff: f32,
    /// The same with a bound that falls with the entropy; from 0 to below 1.
    pub eta_cutoff: f32,
    /// What the draws are a function of, with the prompt's number and the step.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_h: None,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            seed: 1,
        }
    }
}

/// The form of a beam search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamSearch {
    /// How many are followed; at least 1.
    pub beams: usize,
    /// A sequence's score is its log-probability divided by its length to this power.
    pub length_penalty: f64,
    /// When a prompt's search ends.
    pub early_stopping: EarlyStopping,
    /// Continuations are drawn at random, without taking one twice, in place of the best.
    pub sampling: Option<Sampling>,
}

impl Default for BeamSearch {
    fn default() -> Self {
        BeamSearch {
            beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
            sampling: None,
        }
    }
}

/// When beam search ends, after as many sequences are finished as there are beams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// At once (`true`).
    Always,
    /// When no running sequence is better by its score now (`false`).
    Heuristic,
    /// When no running sequence can become better (`"never"`).
    Never,
}

/// What is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Generate {
    /// How the next token is chosen.
    pub search: Search,
    /// New tokens at most; fewer where the model's positions end before.
    pub max_new_tokens: usize,
    /// Tokens of a prompt and what follows it at most.
    pub max_length: usize,
    /// No end before so many new tokens.
    pub min_new_tokens: usize,
    /// No end before so many tokens, the prompt's included.
    pub min_length: usize,
    /// The tokens that end a sequence. Ids outside the vocabulary end nothing.
    pub eos: Vec<u32>,
    /// Texts that end a sequence where they stand in what is generated. What knows texts ends it:
    /// see [`Next::EndText`](super::Next).
    pub stop_strings: Vec<String>,
    /// How far a step leans away from what the model says without the prompt; 1 does not look.
    pub guidance_scale: f32,
    /// What is added to the score of the last token of a sequence of tokens after its others.
    pub sequence_bias: Vec<(Vec<u32>, f32)>,
    /// Multiplies positive scores of the prompt's tokens and divides negative ones; 1 does nothing.
    pub encoder_repetition_penalty: f32,
    /// Divides positive scores of tokens that are there already, and multiplies negative ones; 1
    /// does nothing.
    pub repetition_penalty: f32,
    /// No sequence of so many tokens stands twice; 0 allows all.
    pub no_repeat_ngram: usize,
    /// No sequence of so many tokens of the prompt is generated; 0 allows all.
    pub encoder_no_repeat_ngram: usize,
    /// Sequences of tokens that are never completed; end tokens alone do not count.
    pub bad_words: Vec<Vec<u32>>,
    /// The first new token after a prompt of one token.
    pub forced_bos: Option<u32>,
    /// The last token where the length ends a sequence: the best of these.
    pub forced_eos: Vec<u32>,
    /// Scores that are not finite are replaced in place of an error.
    pub remove_invalid_values: bool,
    /// After so many new tokens an end's score grows by this factor to the power of the tokens
    /// since.
    pub exponential_decay_length_penalty: Option<(usize, f64)>,
    /// Tokens that are never generated.
    pub suppress: Vec<u32>,
    /// Tokens that are not generated first.
    pub begin_suppress: Vec<u32>,
    /// Whether what is left is made logarithms of probabilities again, which a beam's score is the
    /// sum of.
    pub renormalize_logits: bool,
    /// The adapter: the model's own, a loaded one, or none.
    pub adapter: AdapterSlot,
    /// Prompts of a list that are gone on with together, at most; no token depends on it.
    pub batch_size: usize,
    /// The number of the first prompt, where these are a part of a list: draws hang on a prompt's
    /// number.
    pub first_prompt: usize,
}

impl Default for Generate {
    fn default() -> Self {
        Generate {
            search: Search::Greedy,
            max_new_tokens: 64,
            max_length: usize::MAX,
            min_new_tokens: 0,
            min_length: 0,
            eos: Vec::new(),
            stop_strings: Vec::new(),
            guidance_scale: 1.0,
            sequence_bias: Vec::new(),
            encoder_repetition_penalty: 1.0,
            repetition_penalty: 1.0,
            no_repeat_ngram: 0,
            encoder_no_repeat_ngram: 0,
            bad_words: Vec::new(),
            forced_bos: None,
            forced_eos: Vec::new(),
            remove_invalid_values: false,
            exponential_decay_length_penalty: None,
            suppress: Vec::new(),
            begin_suppress: Vec::new(),
            renormalize_logits: false,
            adapter: AdapterSlot::OWN,
            batch_size: usize::MAX,
            first_prompt: 0,
        }
    }
}

/// A setting that is out of range, by Hugging Face's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingFault {
    /// The setting.
    pub name: &'static str,
    /// What it may be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

impl std::fmt::Display for SettingFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, expected, found) = (self.name, &self.expected, &self.found);
        write!(f, "`{name}` is {found}, expected {expected}")
    }
}

/// Faults as they are found.
#[derive(Default)]
struct Faults(Vec<SettingFault>);

impl Faults {
    fn require(&mut self, fits: bool, name: &'static str, expected: &str, found: impl ToString) {
        if !fits {
            self.0.push(SettingFault {
                name,
                expected: expected.to_owned(),
                found: found.to_string(),
            });
        }
    }
}

impl Generate {
    /// Every setting that is out of range for any model.
    pub fn faults(&self) -> Vec<SettingFault> {
        let mut faults = Faults::default();
        let tokens = self.max_new_tokens;
        faults.require(tokens >= 1, "max_new_tokens", "at least 1", tokens);
        let tokens = self.max_length;
        faults.require(tokens >= 1, "max_length", "at least 1", tokens);
        for (name, penalty) in [
            ("repetition_penalty", self.repetition_penalty),
            (
                "encoder_repetition_penalty",
                self.encoder_repetition_penalty,
            ),
        ] {
            let fits = penalty.is_finite() && penalty > 0.0;
            faults.require(fits, name, "a finite number above 0", penalty);
        }
        let scale = self.guidance_scale;
        faults.require(
            scale.is_finite(),
            "guidance_scale",
            "a finite number",
            scale,
        );
        let is_beam = matches!(self.search, Search::Beam(_));
        let fits = !self.stop_strings.iter().any(String::is_empty);
        let expected = "texts that are not empty";
        faults.require(fits, "stop_strings", expected, "an empty text");
        let fits = scale == 1.0 || !is_beam;
        faults.require(fits, "guidance_scale", "1 in beam search", scale);
        if let Some((start, factor)) = self.exponential_decay_length_penalty {
            let name = "exponential_decay_length_penalty";
            let fits = factor.is_finite() && factor > 0.0;
            let found = format!("({start}, {factor})");
            faults.require(fits, name, "a start and a finite factor above 0", &found);
            let fits = !self.eos.is_empty();
            faults.require(
                fits,
                name,
                "an end token beside it (`eos_token_id`)",
                &found,
            );
        }
        let finite = |(_, bias): &&(Vec<u32>, f32)| !bias.is_finite();
        if let Some((ids, bias)) = self.sequence_bias.iter().find(finite) {
            let found = format!("{bias} for {ids:?}");
            faults.require(false, "sequence_bias", "finite numbers", found);
        }
        match &self.search {
            Search::Greedy => {}
            Search::Sample(sampling) => sampling.check(&mut faults),
            Search::Beam(beam) => beam.check(&mut faults),
        }
        faults.0
    }

    /// Every setting that a model with this vocabulary cannot obey.
    pub fn misfits(&self, vocab_size: usize) -> Vec<SettingFault> {
        let mut faults = Faults::default();
        if let Search::Beam(beam) = &self.search {
            let expected = format!("at most the {vocab_size} tokens of the vocabulary");
            let fits = beam.beams <= vocab_size;
            faults.require(fits, "num_beams", &expected, beam.beams);
        }
        let expected = format!("token ids below the vocabulary of {vocab_size}");
        let biased = self.sequence_bias.iter().flat_map(|(ids, _)| ids);
        let lists: [(_, Vec<u32>); 4] = [
            (
                "bad_words_ids",
                self.bad_words.iter().flatten().copied().collect(),
            ),
            ("sequence_bias", biased.copied().collect()),
            ("forced_bos_token_id", self.forced_bos.into_iter().collect()),
            ("forced_eos_token_id", self.forced_eos.clone()),
        ];
        for (name, ids) in lists {
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                faults.require(false, name, &expected, id);
            }
        }
        faults.0
    }
}

impl Sampling {
    fn check(&self, faults: &mut Faults) {
        let t = self.temperature;
        let fits = t.is_finite() && t > 0.0;
        faults.require(fits, "temperature", "a finite number from 0 on", t);
        if let Some(top_h) = self.top_h {
            let fits = top_h > 0.0 && top_h <= 1.0;
            faults.require(fits, "top_h", "above 0, at most 1", top_h);
        }
        faults.require(self.top_k != Some(0), "top_k", "at least 1", 0);
        let p = self.top_p;
        faults.require((0.0..=1.0).contains(&p), "top_p", "from 0 to 1", p);
        let p = self.min_p;
        faults.require((0.0..=1.0).contains(&p), "min_p", "from 0 to 1", p);
        let p = self.typical_p;
        faults.require(p > 0.0 && p <= 1.0, "typical_p", "above 0, at most 1", p);
        for (name, cutoff) in [
            ("epsilon_cutoff", self.epsilon_cutoff),
            ("eta_cutoff", self.eta_cutoff),
        ] {
            let fits = (0.0..1.0).contains(&cutoff);
            faults.require(fits, name, "from 0 to below 1", cutoff);
        }
    }
}

impl BeamSearch {
    fn check(&self, faults: &mut Faults) {
        faults.require(self.beams >= 1, "num_beams", "at least 1", self.beams);
        let penalty = self.length_penalty;
        faults.require(
            penalty.is_finite(),
            "length_penalty",
            "a finite number",
            penalty,
        );
        if let Some(sampling) = &self.sampling {
            sampling.check(faults);
        }
    }
}
