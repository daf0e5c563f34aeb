"""The key table against itself and against the parameters it fills."""

from dataclasses import fields

from san_target.session.keys import BOOLEAN, KEYS, NUMERIC, Kind, Stage
from san_target.session.negotiation import target_offer
from san_target.session.parameters import Parameters, TargetLimits


def test_defaults_are_those_of_the_parameters() -> None:
    parameters = Parameters()
    for key in KEYS.values():
        if not key.parameter:
            continue
        value = getattr(parameters, key.parameter)
        if key.kind in NUMERIC:
            assert key.default == str(value), key.name
        elif key.kind in BOOLEAN:
            assert key.default == ("Yes" if value else "No"), key.name
        else:
            assert (key.default, value) == ("None", False), key.name


def test_every_parameter_but_our_own_declaration_comes_from_one_key() -> None:
    filled = sorted(key.parameter for key in KEYS.values() if key.parameter)
    assert filled == sorted({field.name for field in fields(Parameters)} - {"max_recv_data_segment_length"})


def test_there_is_an_offer_for_every_negotiated_key_within_its_range() -> None:
    offer = target_offer(TargetLimits())
    negotiated = {
        name
        for name, key in KEYS.items()
        if key.kind in BOOLEAN | {Kind.MINIMUM, Kind.MAXIMUM, Kind.LIST} and Stage.OPERATIONAL in key.stages
    }
    assert offer.keys() == negotiated
    for name, value in offer.items():
        key = KEYS[name]
        if key.kind in BOOLEAN:
            assert isinstance(value, bool)
        elif key.kind is Kind.LIST:
            assert isinstance(value, tuple)
            assert key.default in value
        else:
            assert key.lowest <= int(str(value)) <= key.highest


def test_rows_have_a_section_and_a_range() -> None:
    for name, key in KEYS.items():
        assert key.name == name
        assert key.section.startswith("RFC 714")
        if key.kind in NUMERIC:
            assert key.lowest < key.highest
            assert key.default is None or key.lowest <= int(key.default) <= key.highest
