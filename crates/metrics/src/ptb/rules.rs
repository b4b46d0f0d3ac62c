//! The rules of the lexer: patterns, of which the longest match wins and of equals the first, and
//! what each makes of it. Recovered from what the original does with text, not from its grammar.

/// What a rule makes of the text that it matched. What it leaves is read anew.
pub(super) enum Action {
    /// One token.
    Token,
    /// Nothing.
    Drop,
    /// This token.
    As(&'static str),
    /// A token of so many bytes.
    First(usize),
    /// One token without its last characters, so many: they only had to follow.
    Before(usize),
    /// One token up to the last apostrophe, which only had to follow.
    BeforeApostrophe,
    /// One token up to the last `n`, with which the next token, `n't`, begins.
    BeforeNot,
    /// The end of a line.
    NextLine,
}

/// One rule.
pub(super) struct Rule {
    /// A pattern in which `{NAME}` stands for one of [`NAMES`].
    pub pattern: &'static str,
    /// What it makes of a match.
    pub action: Action,
}

const fn rule(pattern: &'static str, action: Action) -> Rule {
    Rule { pattern, action }
}

/// Parts of patterns; each may use those before it.
const NAMES: &[(&str, &str)] = &[
    ("DIGIT", r"\p{Nd}"),
    ("ALPHA", r"\p{L}"),
    // Marks that go on with a word, as far as the original knows them.
    (
        "MARKS",
        concat!(
            r"\u{2c2}-\u{2c5}\u{2d2}-\u{2df}\u{2e5}-\u{2eb}\u{2ed}\u{2ef}-\u{36f}\u{375}\u{378}-\u{379}",
            r"\u{384}-\u{385}\u{3f6}\u{483}-\u{487}\u{55a}-\u{55f}\u{591}-\u{5bd}\u{5bf}\u{5c1}-\u{5c2}",
            r"\u{5c4}-\u{5c5}\u{5c7}\u{615}-\u{61a}\u{64b}-\u{65e}\u{670}\u{6d6}-\u{6e4}\u{6e7}-\u{6ed}",
            r"\u{6fd}-\u{6fe}\u{70f}\u{711}\u{730}-\u{74c}\u{7a6}-\u{7b0}\u{7eb}-\u{7f3}\u{900}-\u{903}",
            r"\u{93c}\u{93e}-\u{94e}\u{951}-\u{955}\u{962}-\u{963}\u{981}-\u{983}\u{9bc}\u{9be}-\u{9c4}",
            r"\u{9c7}-\u{9c8}\u{9cb}-\u{9cd}\u{9d7}\u{9e2}-\u{9e3}\u{a01}-\u{a03}\u{a3c}\u{a3e}-\u{a4f}",
            r"\u{a81}-\u{a83}\u{abc}\u{abe}-\u{acf}\u{b82}\u{bbe}-\u{bc2}\u{bc6}-\u{bc8}\u{bca}-\u{bcd}",
            r"\u{c01}-\u{c03}\u{c3e}-\u{c56}\u{d3e}-\u{d44}\u{d46}-\u{d48}\u{e31}\u{e34}-\u{e3a}",
            r"\u{e47}-\u{e4e}\u{eb1}\u{eb4}-\u{ebc}\u{ec8}-\u{ecd}",
        ),
    ),
    ("LETTER", r"[\p{L}{MARKS}\u{ad}]"),
    ("BLANK", r"[ \t\r\n\f\u{a0}\u{2000}-\u{200a}\u{3000}]"),
    ("APOS", r"(?:['\u{92}’]|&apos;)"),
    ("ANYAPOS", r"(?:['\u{92}’`\u{91}‘‛]|&apos;)"),
    (
        "WORD",
        r"(?:{LETTER}(?:{LETTER}|{DIGIT})*(?:[.!?]{LETTER}(?:{LETTER}|{DIGIT})*)*)",
    ),
    ("REDUCED", r"(?:{APOS}(?i:[msd]|re|ve|ll))"),
    ("ELIDED", r"(?:[dDoOlL]{ANYAPOS}[\p{L}\p{Nd}])"),
    ("PART", r"(?:{ELIDED}?[\p{L}\p{Nd}]+)"),
    (
        "NUM",
        r"(?:{DIGIT}*(?:[.:,\u{ad}\u{66b}\u{66c}]{DIGIT}+)+|{DIGIT}+)",
    ),
    ("ACRONYM", r"(?:[A-Za-z](?:\.[A-Za-z])*)"),
    (
        "ABBREVIATION",
        concat!(
            r"adj|adm|adv|al|alex|apr|ariz|ark|assn|assoc|asst|attys?|aug|ave|bancorp|bhd|bldg|blvd|brig|bros|calif|capt|",
            r"cf|cie|co?mdr|col?|colo|conn|corp|cos|cpl|ct|dak|dec|dept|det|drs?|elec|esq|est|etc|ext|feb|fla|fri|ft|ga|",
            r"gen|govs?|hon|inc|ind|insp|intl|jan|jos|jr|jul|jun|kans?|ky|lieut|lt|ltd|maj|mar|md|messrs|mfg|mich|minn|",
            r"mlle|mme|mon?|mont|mrs?|ms|mt|neb|nev|nov|oct|okla|penn|pfc|ph|plc|pres|profs?|pt[ey]|ptys|pvt|rd|reps?|rev|",
            r"rt|sens?|sept?|seq|sgt|spc|sq|sr|ste?|supts?|sys|tel|tenn|thu|thurs|treas|tues?|univ|va|vs|vt|wed|wisc?|wm|",
            r"wyo|(?:ed|ph)\.d",
        ),
    ),
    // Words in lower case too, so abbreviations with a capital only.
    (
        "CAPITAL",
        r"(?:A(?i:la|z)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash))",
    ),
    // What sentences start with, in the original's view.
    (
        "START",
        concat!(
            r"(?:A|A(?i:bout|ccording|dditionally|fter|n|s|t)|B(?i:ut)|E(?i:arlier)|H(?i:e|er|ere|owever)|I(?i:f|n|t)|",
            r"L(?i:ast)|M(?i:any|ore|r\.|s\.)|N(?i:ow)|O(?i:nce|ne|ther|ur)|S(?i:he|ince|o|ome|uch)|",
            r"T(?i:hat|he|heir|hen|here|hese|hey|his)|W(?i:e|hat|hen|hile)|Y(?i:et|ou))",
        ),
    ),
];

/// A pattern with the names filled in.
pub(super) fn expand(pattern: &str) -> String {
    let mut pattern = pattern.to_owned();
    for (name, part) in NAMES.iter().rev() {
        pattern = pattern.replace(&format!("{{{name}}}"), part);
    }
    pattern
}

/// The rules in order.
pub(super) static RULES: &[Rule] = &[
    rule(
        r"(?i:cannot|gonna|gotta|lemme|gimme|wanna)",
        Action::First(3),
    ),
    rule(r"'[tT](?i:is|was)", Action::First(2)),
    // Tags.
    rule(r"<[!?][A-Za-z-][^>\r\n]*>", Action::Token),
    rule(
        concat!(
            r"</?[A-Za-z][A-Za-z0-9:._-]*",
            r#"(?: +[A-Za-z][A-Za-z0-9:._-]*(?: *= *(?:'[^'\r\n]*'|"[^"\r\n]*"|[A-Za-z0-9:./_-]+))?)* */?>"#,
        ),
        Action::Token,
    ),
    // Entities.
    rule(r"(?i:&amp;)", Action::As("&")),
    rule(r"(?i:&lt;)", Action::As("<")),
    rule(r"(?i:&gt;)", Action::As(">")),
    rule(r"(?i:&quot;|&nbsp;)", Action::Drop),
    // Words and their contractions.
    rule(r"{WORD}{REDUCED}", Action::BeforeApostrophe),
    rule(r"[A-Za-z\u{ad}]+[nN]{ANYAPOS}[tT]", Action::BeforeNot),
    rule(r"{WORD}", Action::Token),
    rule(
        concat!(
            r"{APOS}n{APOS}|[lLdDjJ]'|Dunkin{APOS}|somethin{APOS}|ol{APOS}|{APOS}em|[cC]{ANYAPOS}mon|{APOS}[2-9]0s|",
            r"{APOS}till?|{APOS}cause|cont'd\.?|nor'easter|e'er|s'mores|ev'ry|li'l|nat'l|O{ANYAPOS}o",
        ),
        Action::Token,
    ),
    rule(r"{APOS}n[^A-Za-z]", Action::Before(1)),
    rule(
        r"{ALPHA}+[aeiouyAEIOUY]{ANYAPOS}[aeiouA-Z]{ALPHA}*",
        Action::Token,
    ),
    rule(r"[yY]{APOS}{ALPHA}", Action::Before(1)),
    // Addresses.
    rule(
        r#"https?://[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},-]"#,
        Action::Token,
    ),
    rule(
        concat!(
            r#"(?:(?:www\.(?:[^ \t\n\f\r"<>|.!?(){},]+\.)+[a-zA-Z]{2,4})|"#,
            r#"(?:(?:[^ \t\n\f\r"`'<>|.!?(){},\-_$]+\.)+(?:com|net|org|edu)))"#,
            r#"(?:/[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},-])?"#,
        ),
        Action::Token,
    ),
    rule(
        concat!(
            r#"[a-zA-Z0-9][^ \t\n\f\r"<>|()\u{a0}]*@"#,
            r#"(?:[^ \t\n\f\r"<>|().\u{a0}]+\.)*[^ \t\n\f\r"<>|()\[\].,;:\u{a0}]+"#,
        ),
        Action::Token,
    ),
    rule(
        r"[\p{L}\p{Nd}]+(?:\.[\p{L}\p{Nd}]+)*\.(?i:avi|bmp|doc|exe|gif|html?|jpe?g|mov|mp[34]|pdf|php|png|ppt|py|txt|wav|xml|zip)[ \n.?!,]",
        Action::Before(1),
    ),
    rule(r"@[A-Za-z_][A-Za-z0-9_]*|#{LETTER}+", Action::Token),
    rule(r"{REDUCED}[^A-Za-z]", Action::Before(1)),
    rule(r"[nN]{ANYAPOS}[tT]", Action::Token),
    // Numbers; years without their century.
    rule(
        r"{DIGIT}{1,2}[-/]{DIGIT}{1,2}[-/]{DIGIT}{2,4}",
        Action::Token,
    ),
    rule(r"[-+]?{NUM}", Action::Token),
    rule(r"[⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+)", Action::Token),
    rule(
        r"(?:{DIGIT}{1,4}[- \u{a0}])?{DIGIT}{1,4}(?:\\?/|\u{2044}){DIGIT}{1,4}",
        Action::Token,
    ),
    rule("¼", Action::As("1/4")),
    rule("½", Action::As("1/2")),
    rule("¾", Action::As("3/4")),
    rule("⅓", Action::As("1/3")),
    rule("⅔", Action::As("2/3")),
    rule(r"{APOS}[0-9]{2}{BLANK}", Action::Before(1)),
    rule(
        r"-(?:RRB|LRB|RCB|LCB|RSB|LSB)-|C\.D\.s|pro-|anti-|S&P-500|S&Ls|Cap{APOS}n|c{APOS}est",
        Action::Token,
    ),
    rule(
        r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
        Action::Token,
    ),
    // Money.
    rule(r"[A-Z]*\$|#", Action::Token),
    rule("£", Action::As("#")),
    rule(r"[\u{80}¤\u{20a0}€]", Action::As("$")),
    rule("¢", Action::As("cents")),
    // Abbreviations keep their full stop, single letters not at the end of a sentence.
    rule(
        r"(?:(?i:{ABBREVIATION})|{CAPITAL}|{ACRONYM})\.",
        Action::Token,
    ),
    rule(r"[A-Za-z]\.{BLANK}+{START}{BLANK}", Action::First(1)),
    rule(
        r"(?i:ca|figs?|nos?|op|pp)\.{BLANK}{DIGIT}",
        Action::Before(2),
    ),
    rule(r"(?i:ca|figs?|nos?|op|pp)\.{DIGIT}", Action::Before(1)),
    rule(r"{WORD}\.[,;:]", Action::Before(1)),
    // Telephone numbers; their blanks stay in the token.
    rule(
        concat!(
            r"(?:\([0-9]{2,3}\)[ \u{a0}]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u{a0}])?[0-9]{2,4}[- \u{a0}])[0-9]{3,4}[- \u{a0}]?[0-9]{3,5}|",
            r"(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
        ),
        Action::Token,
    ),
    // Hyphenated words and what else letters and digits make up.
    rule(
        r"(?:{LETTER}|{DIGIT})[A-Za-z0-9.,\u{ad}]*(?:-(?:[A-Za-z0-9\u{ad}]+|[A-Za-z](?:\.[A-Za-z])+\.))+",
        Action::Token,
    ),
    rule(
        r"{PART}(?:[-_\u{58a}\u{2010}\u{2011}]{PART})*",
        Action::Token,
    ),
    rule(r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+", Action::Token),
    rule(
        r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]][^A-Za-z]",
        Action::Before(1),
    ),
    // Signs.
    rule(
        r"[?!]+|\*{2,}|<<|>>|_{2,}|@{2,}|#{2,}|[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)",
        Action::Token,
    ),
    rule(
        r#"[.,;:`'"\u{91}-\u{94}‘’‚“”«»‹›-]|-{2,}|[\u{96}\u{97}–—―]|\.{3,5}|\u{85}|…"#,
        Action::Drop,
    ),
    rule(r"[()\[\]{}]", Action::Token),
    rule(
        concat!(
            r"[%&*+/<=>@\\^_|~¡¥-©¬®-´¶-¹¿×÷\u{37e}\u{387}\u{589}\u{5be}\u{5c0}\u{5c3}\u{5c6}\u{5f3}\u{5f4}\u{600}-\u{603}",
            r"\u{606}-\u{60c}\u{614}\u{61b}\u{61e}\u{61f}\u{66a}\u{66d}\u{6d4}\u{700}-\u{70d}\u{7f6}-\u{7f8}\u{964}\u{965}",
            r"\u{e3f}\u{e4f}\u{1fbd}‖‗„-‣‰-‸※‾-⁂⁄⁺-⁾₊-₎₤℀-⅏←-⯿、。〒・！-／：-＠［-｀｛-･￠￡￥￦]",
        ),
        Action::Token,
    ),
    rule(r"\n", Action::NextLine),
    rule(r"[ \t\r\f\u{a0}\u{2000}-\u{200a}\u{3000}]+", Action::Drop),
];
