"""Pseudocode to code, similar to Pseudo2code, on which the paper's models draft best. Written for this project."""

from __future__ import annotations

from collections.abc import Iterator

from orthrus.bench.tasks import TaskPrompt

SOURCE, LICENCE = "orthrus", "Apache-2.0"
LANGUAGES = ("Python", "JavaScript", "Java", "C")
PROGRAMS = {
    "sum_of_squares(numbers)": (
        "set total to 0; for each number in numbers: add number times number to total; return total"
    ),
    "largest(values)": (
        "set best to the first of values; for each value in the rest of values: if value is greater than "
        "best, set best to value; return best"
    ),
    "count_vowels(text)": (
        "set count to 0; for each letter in text: if letter is one of a, e, i, o, u, add 1 to count; return count"
    ),
    "reverse_words(sentence)": (
        "split sentence at spaces into words; reverse the order of words; join words with spaces; return the result"
    ),
    "is_palindrome(text)": (
        "set left to 0 and right to the length of text minus 1; while left is less than right: if text at "
        "left differs from text at right, return false; add 1 to left; subtract 1 from right; return true"
    ),
    "factorial(n)": ("set result to 1; for i from 2 to n: multiply result by i; return result"),
    "fibonacci(count)": (
        "set a to 0 and b to 1; make an empty list; repeat count times: append a to the list; set a to b and "
        "b to a plus b; return the list"
    ),
    "bubble_sort(items)": (
        "set n to the length of items; for i from 0 to n minus 1: for j from 0 to n minus i minus 2: if items "
        "at j is greater than items at j plus 1, swap them; return items"
    ),
    "binary_search(items, target)": (
        "set low to 0 and high to the length of items minus 1; while low is at most high: set middle to the "
        "whole half of low plus high; if items at middle equals target, return middle; if items at middle is "
        "less than target, set low to middle plus 1; otherwise set high to middle minus 1; return -1"
    ),
    "greatest_common_divisor(a, b)": (
        "while b is not 0: set a to b and b to the remainder of a divided by b; return a"
    ),
    "prime_numbers(limit)": (
        "make an empty list of primes; for n from 2 to limit: set prime to true; for each p in primes: if p "
        "times p is greater than n, stop; if n divides evenly by p, set prime to false and stop; if prime, "
        "append n to primes; return primes"
    ),
    "word_counts(text)": (
        "make an empty dictionary; split text at spaces; for each word in lower case: add 1 to its count in "
        "the dictionary, from 0; return the dictionary"
    ),
    "transpose(matrix)": (
        "make an empty list of rows; for each column index of matrix: make a list of the elements of that "
        "column; append it to rows; return rows"
    ),
    "running_average(numbers)": (
        "set total to 0; make an empty list; for each number with its position from 1: add number to total; "
        "append total divided by position; return the list"
    ),
    "caesar_cipher(text, shift)": (
        "make an empty result; for each letter in text: if it is a letter from a to z, move it by shift "
        "places, around from z to a; append it to result; return result"
    ),
    "merge_sorted(left, right)": (
        "set i and j to 0; make an empty list; while i is within left and j is within right: append the "
        "smaller of left at i and right at j, and add 1 to its index; append what remains of left and of "
        "right; return the list"
    ),
}
"""Signature -> steps, separated by semicolons."""


def prompts() -> Iterator[TaskPrompt]:
    """Every program in every language, one language after another."""
    for language in LANGUAGES:
        for number, (signature, steps) in enumerate(PROGRAMS.items()):
            listed = "\n".join(f"{n}. {step.strip()}" for n, step in enumerate(steps.split(";"), 1))
            text = f"Write the following pseudocode as a {language} function.\n\nfunction {signature}:\n{listed}"
            yield TaskPrompt(f"pseudocode/{language.lower()}/{number}", "pseudocode", text)
