"""Writes a program of many files into a directory: parsers by Boost.Spirit, which cost a compiler much memory, and
plain code that costs it time."""

import pathlib
import random
import sys

UNITS = 80

random.seed(2)
into = pathlib.Path(sys.argv[1])
into.mkdir(parents=True)


def plain(number):
    lines = ["#include <algorithm>", "#include <iostream>", "#include <map>", "#include <regex>", "#include <string>",
             "#include <vector>", f"namespace part{number} {{"]
    for index in range(25):
        kind = random.choice(["int", "double", "std::string", "std::vector<long>"])
        lines += [f"struct Record{index} {{ {kind} field{index}; std::map<std::string, {kind}> by_name; }};",
                  f"{kind} find{index}(const Record{index} &record, const std::string &key) {{",
                  "    auto found = record.by_name.find(key);",
                  f"    return found == record.by_name.end() ? record.field{index} : found->second;", "}",
                  f"long count{index}(const std::vector<Record{index}> &records, const std::string &key) {{",
                  "    return std::count_if(records.begin(), records.end(), [&](const auto &record) {",
                  f"        return record.by_name.count(key + \"{random.getrandbits(64):x}\") > {random.randrange(9)};",
                  "    });", "}"]
    lines += ['bool matches(const std::string &text) { return std::regex_search(text, std::regex("[a-z]+[0-9]*")); }', "}"]
    return "\n".join(lines)


def parser(number):
    rules = "".join(
        f"        rule{index} = '{random.choice('abcdefgh')}' >> (int_ | double_ | +char_(\"a-z{index % 10}\")) >> "
        f"*(',' >> ({'rule%d' % (index - 1) if index else 'int_'} | lit(\"{random.getrandbits(32):x}\")));\n"
        for index in range(12))
    names = ", ".join(f"rule{index}" for index in range(12))
    return f"""#include <boost/spirit/include/qi.hpp>
#include <string>
namespace qi = boost::spirit::qi;
namespace part{number} {{
struct Grammar : qi::grammar<std::string::const_iterator, qi::space_type> {{
    Grammar() : Grammar::base_type(rule11) {{
        using namespace qi;
{rules}    }}
    qi::rule<std::string::const_iterator, qi::space_type> {names};
}};
bool parse(const std::string &text) {{
    auto at = text.begin();
    return qi::phrase_parse(at, text.end(), Grammar(), qi::space);
}}
}}
"""


for number in range(UNITS):
    (into / f"unit{number:02}.cpp").write_text(parser(number) if number % 4 == 3 else plain(number))
(into / "Makefile").write_text("CXXFLAGS = -O2 -g\nall: $(patsubst %.cpp,%.o,$(sort $(wildcard *.cpp)))\n")
