import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.graders.math.normalize import closing, normalize, to_latex


def test_unicode_forms_become_latex():
    assert to_latex("2√3 x² ≤ ½") == r"2\sqrt{3} x^{2} \le  \frac{1}{2}"
    assert to_latex("√(x+1)⋅π") == r"\sqrt{x+1}\cdot \pi"
    assert to_latex("∛2 x⁻¹⁰ a₁₂") == r"\sqrt[3]{2} x^{-10} a_{12}"
    assert to_latex("\u200b７−３\u00a0𝟕") == "7-3 7"


@pytest.mark.parametrize(
    ("texts", "form"),
    [
        (("pi", r"\pi", "π"), r"\pi"),
        ((r"\dfrac12", r"\tfrac{1}{2}", r"\frac 1 2", r"{1 \over 2}", "½", r"\left.\frac12\right."), r"\frac{1}{2}"),
        (("sqrt(2)", r"\sqrt{2}", "√2", r"\text{$\sqrt{2}$}"), r"\sqrt{2}"),
        (("1,234", r"1\,234", "1{,}234", r"1,\!234", "1'234"), "1,234"),
        (("1, 2 and 3", r"1, 2 \text{ and } 3", r"1,\;2, and 3", "1; 2; 3."), "1;2;3"),
        (("1 or 2", r"1 \text{ or } 2", r"1 \mbox{ or } 2"), r"1 \or 2"),
        ((r"1 \lor 2", r"1 \vee 2", "1 ∨ 2"), r"1 \lor 2"),
        (("x <= 2", r"x \leq 2", r"x \leqslant 2", "x≤2", r"x\le2"), "x<=2"),
        ((r"\text{Navin}", r"\textbf{Navin}", r"\mathrm{ Navin }", r"\mbox{Navin}"), r"\text{Navin}"),
        ((r"90^\circ", r"90^{\circ}", "90°", r"90\degree"), r"90\text{degree}"),
        ((r"\text{(D)}", r"\mathbf{(D)}", "(D)", "(D)."), "(D)"),
        ((r"5\text{ cm}^2", r"5 \mathrm{~cm}^2", r"5\,\text{cm}^2"), r"5\text{cm}^2"),
        ((r"\begin{array} 1 \\ 2\end{array}", "\\begin{array}1\\\\\n2\\end{array}"), r"\begin{array}1\cr2\end{array}"),
        ((r"\\frac{1}{2}", r"\frac{1}{2}"), r"\frac{1}{2}"),
        ((r"\boxed{5}", "$5$", r"\(5\)", "{5}", r"\mathbf{5}", r"\text{5}", "The answer is: 5"), "5"),
        ((r"\$5", r"\$ 5"), "$5"),
        ((r"\operatorname{arcsin} x", r"\arcsin x"), r"\arcsin x"),
    ],
)  # fmt: skip
def test_what_differs_in_typesetting_alone_has_one_form(texts, form):
    spaces = str.maketrans({" ": None})
    assert {normalize(text).translate(spaces) for text in texts} == {form.translate(spaces)}


@settings(deadline=None)
@given(st.text(max_size=300))
def test_space_around_any_text_changes_nothing(text):
    assert normalize(f" {text} ") == normalize(text)


def test_brackets_of_any_kind_close_each_other():
    assert closing("[0,1)+2") == 4
    assert closing("(1") == -1
