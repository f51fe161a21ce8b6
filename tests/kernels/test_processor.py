"""What Linux says about the processor, in the words of x86 and of Arm; nothing elsewhere."""

import pytest

from manual_backprop.kernels import processor

X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9R14\nflags\t\t: fpu avx512f\n\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd\n\n"
ASKED = {
    "x86": (X86, ("flags", "Features"), "fpu avx512f"),
    "arm": (ARM, ("flags", "Features"), "fp asimd"),
    "the first": (X86 + X86.replace("EPYC 9R14", "another"), ("model name",), "AMD EPYC 9R14"),
    "vendor": (X86, ("vendor_id",), "AuthenticAMD"),
    "not told": (ARM, ("vendor_id",), ""),
    "no such file": (None, ("vendor_id",), ""),
}


@pytest.mark.parametrize(("content", "names", "expected"), ASKED.values(), ids=ASKED)
def test_what_is_said(monkeypatch, tmp_path, content, names, expected):
    file = tmp_path / "cpuinfo"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(processor, "SOURCE", file)
    processor.said.cache_clear()
    assert processor.said(*names) == expected
    processor.said.cache_clear()
