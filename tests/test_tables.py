"""Tables for print: nothing in a cell is markup, and numbers look as they should."""

from jaxcnn.runs.tables import latex_text, markdown_text


def test_a_latex_table_has_the_rules_of_booktabs_and_takes_any_text() -> None:
    table = latex_text(("class", "accuracy (%)"), [("a_b & {c}", "-1.50 ± 0.25"), ("~^\\<|$#", "")])
    assert table.splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"class & accuracy (\%) \\",
        r"\midrule",
        r"a\_b \& \{c\} & $-$1.50 $\pm$ 0.25 \\",
        r"\textasciitilde{}\textasciicircum{}\textbackslash{}\textless{}\textbar{}\$\# &  \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_a_markdown_table_takes_any_text() -> None:
    table = markdown_text(("class", "accuracy (%)"), [("<b>|*_`[", "-1.50 ± 0.25")])
    assert table == "| class | accuracy (%) |\n| --- | --- |\n| \\<b\\>\\|\\*\\_\\`\\[ | -1.50 ± 0.25 |\n"
