r"""Normalize the typesetting of an answer.

`normalize` turns what models write (Unicode, fonts, spacing, `\left`, `\dfrac`, plain-text `sqrt(2)`) into the small
subset of LaTeX that `read` and `parser` know. It takes linear time and evaluates nothing.
"""

import re
import unicodedata
from functools import lru_cache

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2010\u2011\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2007\u2008\u2009\u200a\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
        "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/",
        "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "∅": r"\emptyset ", "°": r"^\circ ", "≈": r"\approx ",
        "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "θ": r"\theta ", "λ": r"\lambda ",
        "μ": r"\mu ", "ρ": r"\rho ", "σ": r"\sigma ", "φ": r"\phi ", "ϕ": r"\phi ", "ω": r"\omega ", "τ": r"\tau ",
        "∠": r"\angle ", "△": r"\triangle ", "⟨": r"\langle ", "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
        "⌈": r"\lceil ", "⌉": r"\rceil ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}",
        "ℕ": r"\mathbb{N}", "ℂ": r"\mathbb{C}", "∨": r"\lor ", "∧": r"\land ", "、": ",", "′": "'", "’": "'",
        "…": "...", "¬": r"\neg ", "≡": r"\equiv ",
    }
)  # fmt: skip
_FRACTIONS = dict(zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", re.findall("..", "121323143415253545165618385878"), strict=True))
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}


def to_latex(text: str) -> str:
    """Replace Unicode by LaTeX: roots, powers, fractions, signs, wide characters."""
    if text.isascii():
        return text
    text = re.sub("[\U0001d400-\U0001d7ff]", lambda m: unicodedata.normalize("NFKC", m[0]), text)
    text = re.sub("[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]", lambda m: rf"\frac{{{_FRACTIONS[m[0]][0]}}}{{{_FRACTIONS[m[0]][1]}}}", text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉ₙ]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = text.translate(_CHARACTERS)
    text = re.sub(
        r"([√∛∜])\s*(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?|[A-Za-z]|\\[a-z]+))?",
        lambda m: _ROOTS[m[1]] + ("" if m[2] is None and m[3] is None else f"{{{m[2] or m[3] or ''}}}"),
        text,
    )
    return unicodedata.normalize("NFKC", text).strip()


_WRAPPER = (
    r"\\(?:text(?:bf|it|rm|sf|tt|up|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|operatorname\*?|boldsymbol|bm)"
)
_END = r"(?![A-Za-z])"
_FUNCTIONS = (
    "arcsin|arccos|arctan|arccot|arcsec|arccsc|sinh|cosh|tanh|coth|sech|csch|sin|cos|tan|cot|sec|csc"
    "|ln|lg|log|exp|sqrt|max|min|gcd|lcm|cis"
)
_AND = rf"(?:[,;]\s*)?(?:{_WRAPPER}\s*\{{[\s~,]*and[\s~]*\}}|(?<![A-Za-z\\{{])and(?![A-Za-z])|\\?&)"
_OR = rf"(?:[,;]\s*)?(?:{_WRAPPER}\s*\{{[\s~,]*or[\s~]*\}}|(?<![A-Za-z\\{{])or(?![A-Za-z]))"
_DIGIT_OR_GROUP = r"(?:\{([0-9]+)\}|([0-9]))"
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)\s*\.|\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|bf|it|tiny|scriptsize|small|normalsize"
         r"|large|Large|LARGE|huge|Huge)" + _END, ""),
        (r"\\(?:boxed|fbox|underline|emph|uline)\s*(?=\{)|\\(?:text)?color\s*\{[^{}]*\}|\\colorbox\s*\{[^{}]*\}(?=\s*\{)"
         r"|\\(?:[hv]?phantom|tag\*?|label)\s*\{[^{}]*\}|\\[hv]?phantom\s+[^\s\\{}]", ""),
        (rf"{_WRAPPER}\s*\{{\s*(\\\$|[€£¥₹¢])\s*\}}", r"\1"),
        (r"\\pounds" + _END, "£"),
        (r"\\(?:AA|text\s*\{\s*\\AA\s*\})" + _END, r"\\text{angstrom}"),
        (rf"{_WRAPPER}\s*\{{\s*(?:\^\s*\{{?\\circ\}}?|\\degree)\s*([CFK])\s*\}}", r"\\text{deg\1}"),
        (r"(?<=[0-9])\s*\^\s*(?:\{\s*(?:\\(?:text|mathrm|rm)\s*\{?)?\s*o\s*\}{1,2}|o(?![A-Za-z]))", r"\\text{degree}"),
        (rf"\\mu\s*({_WRAPPER}\s*\{{)\s*", r"\1µ"),
        (rf"({_WRAPPER}\s*\{{[^{{}}]*?)\\mu\s*", r"\1µ"),
        (rf"(?<=[0-9])\s*{_WRAPPER}\s*\{{\s*,\s*\}}\s*(?=[0-9]{{3}})", ","),
        (r"\\rm\s*\{([^{}]*)\}|\{\s*\\rm\s+([^{}]*)\}", r"\\text{\1\2}"),
        (r"\\rm" + _END, ""),
        (r"(?<=[0-9])\{\s*([:,;])\s*\}", r"\1"),
        (rf"{_WRAPPER}\s*\{{\s*([,.;:]?)\s*\}}", r"\1 "),
        (r"\\sqrt\s*\[\s*\]", r"\\sqrt"),
        (r"\*\*\s*\(([^()]*)\)|\*\*\s*(-?[\w.]+)", r"^{\1\2}"),
        (r"(?<![A-Za-z\\])abs\s*\(([^()]*)\)", r"|\1|"),
        (r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)", "*"),
        (r"\.{3}|\\(?:[lc]?dots|dots[cbmio])" + _END, r"\\ldots "),
        (r"\.([0-9]*?)([0-9]{1,6}?)\2{2,}\\ldots ?$", r".\1\\overline{\2}"),
        (r"(?<=[0-9])\.([0-9]*)\(([0-9]{1,6})\)$", r".\1\\overline{\2}"),
        (rf"\.([0-9]*)\\dot\s*{_DIGIT_OR_GROUP}([0-9]*)\\dot\s*{_DIGIT_OR_GROUP}", r".\1\\overline{\2\3\4\5\6}"),
        (rf"\.([0-9]*)\\(?:dot|bar|overline)\s*{_DIGIT_OR_GROUP}", r".\1\\overline{\2\3}"),
        (r"\\(?:hat|widehat|mathbf|boldsymbol|bm|vec)\s*(?:\{\s*\\?([ijk])(?:math)?\s*\}|\\?([ijk])(?:math)?(?![A-Za-z]))",
         r"\\vec{\1\2}"),
        (r"\\mathbb\s*([A-Z])" + _END, r"\\mathbb{\1}"),
        (r"(\\begin\{([pb]matrix)\}.*?\\end\{\2\})\s*([a-z])$", r"\3\1"),
        (r"([)\]]|\\end\{[pb]?matrix\})\s*\^\s*\{?\s*(?:T|\\top|\\mathsf\s*\{?T\}?|\\intercal)\s*\}?$", r"\1"),
        (r"^<([^<>=]*,[^<>=]*)>$", r"(\1)"),
        (r"\s*\(\s*\\?(?:mod|bmod|pmod)\s*\{?([^{}()]+)\}?\s*\)"
         r"|\s*\\[pb]?mod\s*(?:\{([^{}]*)\}|([0-9A-Za-z]+))", r"\\mod{\1\2\3}"),
        (r"(?<=\S)\s*\\q?quad\s*(?=\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*=)", "; "),
        (r"\\(?:land|wedge)" + _END, r"\\land "),
        (r"\\(?:lor|vee)" + _END, r"\\lor "),
        (r"(?<!\\)\$|\\[()]|\\\[|\\\]|\\!\s*|&=", ""),
        (r"\\\$", "$"),
        (r"\{,\}", ","),
        (r"(?<=[0-9])\\(?:,|;|:| |thinspace(?![A-Za-z]))\s*(?=[0-9]{3}(?![0-9]))", ","),
        (r"(?<=[0-9])'(?=[0-9]{3}(?![0-9]))", ","),
        (r"[,;]\s*\\q?quad" + _END, "; "),
        (r"\\[,;:>/ ]|\\q?quad" + _END + r"|\\hspace\*?\{[^{}]*\}|\\(?:thin|enspace|thinspace)" + _END + "|~", " "),
        (r"\\[dtc]frac" + _END, r"\\frac"),
        (r"\\[dt]binom" + _END, r"\\binom"),
        (r"\s*\\(?:leqslant|leqq|leq|le)" + _END, "<="),
        (r"\s*\\(?:geqslant|geqq|geq|ge)" + _END, ">="),
        (r"\s*\\lt" + _END, "<"),
        (r"\s*\\gt" + _END, ">"),
        (r"\\neq" + _END + r"|\\not\s*=|!=|\\ne" + _END, "≠"),
        (r"\\approxeq" + _END + r"|\\simeq" + _END, r"\\approx "),
        (r"\\(?:cdot|times|ast)" + _END, "*"),
        (r"\\div" + _END, "/"),
        (r"\\colon" + _END, ":"),
        (r"\\(?:lbrace)" + _END, r"\\{"),
        (r"\\(?:rbrace)" + _END, r"\\}"),
        (r"\\(?:[lr]?vert|mid)" + _END, "|"),
        (r"\\langle" + _END, "("),
        (r"\\rangle" + _END, ")"),
        (r"\\(?:varnothing)" + _END, r"\\emptyset"),
        (r"\\varphi" + _END, r"\\phi"),
        (r"\\infin" + _END, r"\\infty"),
        (r"(?<![A-Za-z\\])(?:infinity|inf|oo)" + _END, r"\\infty"),
        (r"(?<![A-Za-z\\])(?:pi)" + _END, r"\\pi"),
        (rf"(?<![A-Za-z\\])({_FUNCTIONS})(?=\s*[(^_0-9\\])", r"\\\1"),
        (r"\\(?:R|Reals|reals)" + _END, r"\\mathbb{R}"),
        (r"\\mathbf\s*\{\s*([RZQNC])\s*\}", r"\\mathbb{\1}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\^\s*(?:\\prime|\{\s*\\prime\s*\})|\\prime" + _END, "'"),
        (r"\\%|\\text\s*\{\s*(?:%|per\s*cent(?:age)?|pct)\s*\}|(?<=[0-9])\s*(?:per\s?cent(?:age)?|pct)" + _END, "%"),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree" + _END, r"\\text{degree}"),
        (rf"\\operatorname\*?\s*\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 "),
        (r"(?:\\operatorname\*?\s*\{\s*|(?<![A-Za-z\\]))a(sin|cos|tan|cot|sec|csc)(?:\s*\}|(?=\())", r"\\arc\1 "),
        (rf"{_WRAPPER}\s*\{{\s*([^{{}}A-Za-z]*[0-9][^{{}}A-Za-z]*)\s*\}}(?!\s*\^)", r"{\1}"),
        (rf"{_WRAPPER}\s*\{{\s*([ei]|\\pi|[xyznkpqr])\s*\}}", r"{\1}"),
        (rf"(?<=\S)[,;]?\s*(?:{_WRAPPER}\s*\{{)?\s*,?\s*(?:for|where)\s(?:any|all|every|some|each)\s(?:constants?|integers?|real|reals|values?|positive|natural)"
         r"\b[^{}]*\}?\s*[A-Za-z]?$", ""),
        (_OR, r"\\or "),
        (rf"{_WRAPPER}\s*\{{([^{{}}]*[A-Za-z][^{{}}]*?)\s*;\s*\}}", r"\\text{\1};"),
        (rf"{_WRAPPER}\s*\{{\s*([^{{}}]*?)\s*\}}", r"\\text{\1}"),
        (r"\\frac\s*\{\s*(\\text\{[^{}]*\})\s*\}\s*\{\s*(\\text\{[^{}]*\}(?:\^\{?[0-9]\}?)?)\s*\}", r"\1/\2"),
        (r"\{\s*(\\text\{[^{}]*\})\s*\}", r"\1"),
        (r"\\(frac|binom)\s*([0-9])\s*([0-9])(?![0-9])", r"\\\1{\2}{\3}"),
        (r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*([0-9])(?![0-9])", r"\1{\2}"),
        (r",\s+", ";"),  # "1, 234" is a list, "1,234" may be one number
        (r"\s+", " "),
        (r" ?([^\w\\ ]) ?", r"\1"),
        (r"(?<=[(;,\[{=])\+(?=\\infty|[0-9])", ""),
        (r"(?<![0-9})\]A-Za-z ])\\text\{([A-Za-z])\}", r"\1"),
    )
)  # fmt: skip
_ANNOUNCEMENT = re.compile(
    rf"^(?:{_WRAPPER}\s*\{{\s*)?(?:the )?(?:final )?(?:solution|answer)s?(?: (?:is|are)\s*:?| ?:)\s*(?:\}})?"
    "(?=[^A-Za-z])",
    re.IGNORECASE,
)
_FINAL_STOP = re.compile(r"\s*(?:(?<![\\.])[.,;])?\s*$")
_PLAIN = re.compile(r"[A-Za-z]|[0-9]+")
_OPENING_WRAPPER = re.compile(rf"{_WRAPPER}\s*(?=\{{)")
_WORDS = re.compile(r"\s*[A-Za-z][A-Za-z' -]*[A-Za-z]\s*")


@lru_cache(maxsize=8192)
def normalize(text: str) -> str:
    r"""Return one form for texts that differ in typesetting only: spacing, `\left`, `\dfrac`, fonts, `$`, final stop.

    A comma with a space after it (it separates elements) and the word "and" become `;`. The word "or" becomes
    `\lor`. Words stand in `\text{...}`.
    """
    if _PLAIN.fullmatch(text):
        return text
    text = to_latex(text).strip()
    while unmarked := _MARKUP.fullmatch(text):
        text = unmarked[2].strip()
    if "\\\\" in text:
        # Rows of a matrix; elsewhere a backslash that was escaped once too often.
        text = re.sub(r"(?:\\\\\s*)+$", "", text)
        text = text.replace("\\\\", r"\cr " if r"\begin" in text else "\\")
    text = _FINAL_STOP.sub("", text).strip("$ ")
    while len(text) > 1 and text[0] == "{" and closing(text) == len(text) - 1:
        text = _FINAL_STOP.sub("", text[1:-1]).strip("$ ")
    if "{" in text:
        text = _POWERS_IN_TEXT.sub(lambda m: m[1] + re.sub(r"\^\{(-?[0-9])\}", r"^\1", m[2]), text)
    for infix, command in ((r"\over", r"\frac"), (r"\choose", r"\binom")):
        if infix in text:
            text = _prefixed(text, re.compile(re.escape(infix) + _END), command)
    text = _SYSTEM.sub(_rows, text) if r"\begin" in text else re.sub(_AND, ";", text)
    while (wrapper := _OPENING_WRAPPER.match(text)) and closing(text[wrapper.end() :]) == len(text) - wrapper.end() - 1:
        inside = text[wrapper.end() + 1 : -1]
        if _WORDS.fullmatch(inside):
            break
        text = inside.strip()
    text = _ANNOUNCEMENT.sub("", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".,;\\ ")
    while len(text) > 1 and text[0] == "{" and closing(text) == len(text) - 1:
        text = text[1:-1].strip()
    return text


_POWERS_IN_TEXT = re.compile(rf"({_WRAPPER}\s*)(\{{(?:[^{{}}]|\^\{{-?[0-9]\}})*\}})")
_MARKUP = re.compile(r"(\*\*|\*|`|\"|'|“|__)((?:(?!\1).)+)(?:\1|”)", re.DOTALL)
_SYSTEM = re.compile(
    r"(?:\\left\s*)?(?:\\\{|\\lbrace)?\s*\\begin\{(cases|dcases|rcases|aligned|align\*?|alignedat|gathered|gather\*?|split|array"
    r"|eqnarray\*?|equation\*?)\}(?:\{[^{}]*\})?(.*?)\\end\{\1\}(?:\s*\\right\s*\.)?",
    re.DOTALL,
)
_CONDITION = re.compile(
    r"^\s*(?:\\(?:text|mbox|textrm|mathrm)\s*\{\s*)?(?:,?\s*(?:if|for|when|where|otherwise)\b)?\s*\}?"
)


def _rows(system: re.Match[str]) -> str:
    r"""Return the rows of a system as a list; a row that has a condition as `value \if condition`."""
    if system[1] == "array" and not re.search(r"[=<>]|\\[lg]eq?\b|\\neq?\b", system[2]):
        return system[0]
    rows: list[str] = []
    for row in re.split(r"\\cr ?(?:\[[^\[\]]*\])?", system[2]):
        value, mark, condition = row.partition("&")
        if mark and "cases" in system[1] and not re.match(r"\s*(?:[=<>]|\\[lgn]e)", condition):
            row = f"{value.strip().rstrip(',')}\\if {_CONDITION.sub('', condition)}"
        rows.append(row.replace("&", "").strip().rstrip(",;."))
    return "; ".join(row for row in rows if row)


def _prefixed(text: str, infix: re.Pattern[str], command: str) -> str:
    r"""Rewrite `{a \over b}` as `\frac{a}{b}`. Without braces around it the sign divides the whole text."""
    for _ in range(10):
        found = infix.search(text)
        if found is None:
            break
        start, depth = found.start(), 0
        while start and depth >= 0:
            start -= 1
            depth += (text[start] == "}") - (text[start] == "{")
        opened = depth < 0
        end = start + closing(text[start:]) if opened else len(text)
        if end < found.end():
            break
        above, below = text[start + opened : found.start()].strip(), text[found.end() : end].strip()
        text = f"{text[:start]}{command}{{{above}}}{{{below}}}{text[end + opened :]}"
    return text


def closing(text: str) -> int:
    """Return where the first bracket of `text` is closed, or -1. Kinds may differ: `[0,1)` is an interval."""
    depth = 0
    for at, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return at
    return -1
