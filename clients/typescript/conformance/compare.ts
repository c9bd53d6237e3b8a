/** A value of JSON. */
export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

const ANY = "$any";

/**
 * What is not as expected, in words; empty if all is.
 *
 * @param expected - a part of what must be there.
 * @param found - what is there, in protobuf's JSON mapping.
 * @param path - of what is compared.
 */
export function difference(expected: Json, found: Json | undefined, path: string): string {
  if (expected === ANY) {
    return isDefault(found) ? `${path} is missing` : "";
  }
  if (Array.isArray(expected)) {
    return differenceOfLists(expected, found, path);
  }
  if (expected !== null && typeof expected === "object") {
    const held = isObject(found) ? found : {};
    return first(
      Object.entries(expected).map(
        ([name, value]) =>
          () =>
            difference(value, held[name], `${path}.${name}`),
      ),
    );
  }
  const isEqual = isDefault(expected) ? isDefault(found) : plain(expected) === plain(found);
  return isEqual ? "" : `${path} is ${said(found)} instead of ${said(expected)}`;
}

function differenceOfLists(expected: Json[], found: Json | undefined, path: string): string {
  const items = Array.isArray(found) ? found : [];
  if (items.length !== expected.length) {
    return `${path} has ${items.length} items instead of ${expected.length}: ${said(items)}`;
  }
  return first(
    expected.map(
      (value, index) => () => difference(value, items[index], `${path}[${index}]`),
    ),
  );
}

function first(parts: (() => string)[]): string {
  for (const part of parts) {
    const wrong = part();
    if (wrong) {
      return wrong;
    }
  }
  return "";
}

function isObject(value: Json | undefined): value is { [name: string]: Json } {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

/** A field with its default is as one that is left out. */
function isDefault(value: Json | undefined): boolean {
  if (value !== null && typeof value === "object") {
    return Object.keys(value).length === 0;
  }
  return value === undefined || value === null || [0, "", "0", false].includes(value);
}

/** 64-bit integers are strings in JSON, and other numbers are not: both as numbers. */
function plain(value: Json | undefined): unknown {
  if (typeof value === "string" && /^-?\d+$/.test(value)) {
    return BigInt(value);
  }
  const isDecimal = typeof value === "string" && /^-?\d+(\.\d+)?(e[+-]?\d+)?$/i.test(value);
  const number = isDecimal ? Number(value) : value;
  return Number.isInteger(number) ? BigInt(number as number) : number;
}

/** A value as an error shows it. */
export function said(value: Json | undefined): string {
  return JSON.stringify(value) ?? "nothing";
}
