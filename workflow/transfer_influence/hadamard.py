"""Rows of Hadamard matrices, computed one at a time.

A Hadamard matrix has entries 1 and -1, and any two of its rows are orthogonal. The orders here are
those of three constructions: doubling (Sylvester 1867), and Paley's two (Paley 1933, "On orthogonal
matrices") for prime numbers.
"""

import functools
import itertools

import numpy as np


def smallest_order(units: int) -> int:
    """Return the smallest order, `units` at least, of a matrix that can be constructed here.

    It is less than twice `units`, as the powers of two are among the orders.
    """
    return next(order for order in itertools.count(max(units, 1)) if _is_order(order))


@functools.cache
def _is_order(order: int) -> bool:
    if order <= 2:
        return order >= 1
    return order % 4 == 0 and (_is_first(order) or _is_second(order) or _is_order(order // 2))


def matrix_row(order: int, row: int) -> np.ndarray:
    """Return one row of the matrix: int8 (order,). Row 0 is all ones.

    Args:
        order: one that `smallest_order` returns.
        row: which one, from 0.
    """
    if row == 0:
        return np.ones(order, np.int8)
    if order == 2:
        return np.array([1, -1], np.int8)
    if _is_first(order):
        return _first_row(order, row)
    if _is_second(order):
        return _second_row(order, row)
    half = matrix_row(order // 2, row % (order // 2))
    return np.concatenate([half, half if row < order // 2 else -half])


def _is_first(order: int) -> bool:
    return order % 4 == 0 and _is_prime(order - 1)


def _is_second(order: int) -> bool:
    return order % 4 == 0 and (order // 2 - 1) % 4 == 1 and _is_prime(order // 2 - 1)


@functools.cache
def _is_prime(number: int) -> bool:
    divisors = range(2, int(number**0.5) + 1)
    return number > 1 and all(number % divisor for divisor in divisors)


@functools.lru_cache(maxsize=4)
def _characters(prime: int) -> np.ndarray:
    """Return 1 for each square other than 0, -1 for what is none, 0 for 0: int8 (prime,)."""
    characters = np.full(prime, -1, np.int8)
    characters[np.arange(1, prime, dtype=np.int64) ** 2 % prime] = 1
    characters[0] = 0
    return characters


def _first_row(order: int, row: int) -> np.ndarray:
    """Return a row, not the first, of the matrix from the squares modulo `order` - 1."""
    found = np.empty(order, np.int8)
    found[0] = -1
    found[1:] = np.roll(_characters(order - 1), row - 1)
    found[row] = 1
    return found


def _second_row(order: int, row: int) -> np.ndarray:
    """Return a row, not the first, of the matrix from the squares modulo `order` / 2 - 1.

    Each entry of a symmetric matrix of 1, -1, and 0 on the diagonal becomes a block of two by two.
    """
    place, second = divmod(row, 2)
    entries = np.ones(order // 2, np.int8)
    if place:
        entries[1:] = np.roll(_characters(order // 2 - 1), place - 1)
    entries[place] = 0
    found = np.kron(entries, np.array([1, -1 if second else 1], np.int8))
    found[2 * place : 2 * place + 2] = (-1, -1) if second else (1, -1)
    found[1] *= -1  # so that the first row is all ones
    return found
