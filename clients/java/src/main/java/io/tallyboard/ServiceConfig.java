package io.tallyboard;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.Reader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/** The published service config: deadlines, waiting for a connection, and retries. */
final class ServiceConfig {
  private static final String RESOURCE = "service_config.json";

  private ServiceConfig() {}

  /** The config as gRPC wants it: maps, lists, strings, booleans, and every number a Double. */
  static Map<String, ?> load() {
    InputStream resource = ServiceConfig.class.getResourceAsStream(RESOURCE);
    if (resource == null) {
      throw new IllegalStateException(RESOURCE + " is missing beside the classes");
    }
    try (Reader reader = new InputStreamReader(resource, StandardCharsets.UTF_8)) {
      return new Gson().fromJson(reader, new TypeToken<Map<String, Object>>() {}.getType());
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }
}
