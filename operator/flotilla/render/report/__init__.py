"""`flotilla report`: one HTML page without requests to anywhere."""
